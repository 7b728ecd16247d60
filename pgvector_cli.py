"""Door 3, shell: the command `pgvector-api`."""

import argparse
import logging
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType

import uvicorn
from fastapi import FastAPI

from pgvector_api import create_app
from pgvector_service import __version__, logs
from pgvector_service.embedded import EmbeddedPostgres
from pgvector_service.errors import VectorDBError
from pgvector_service.maintenance import libpq_variables, maintenance
from pgvector_service.settings import Settings, SettingsError, environment_for_command

log = logging.getLogger(__name__)

# Requests in flight when the service is told to stop; statements are bounded by STATEMENT_TIMEOUT_S in any case.
GRACEFUL_SHUTDOWN_S = 10
KEEP_ALIVE_S = 75


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; exits with 1 and one line on standard error when a setting is wrong."""
    parser = argparse.ArgumentParser(prog="pgvector-api", description="Vector search as a REST service on PostgreSQL.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True)
    serve_command = commands.add_parser(
        "serve", help="serve the API, over a PostgreSQL of its own without DATABASE_URL"
    )
    serve_command.add_argument("--host", help="API_HOST")
    serve_command.add_argument("--port", type=int, help="API_PORT")
    serve_command.add_argument("--workers", type=int, help="WEB_CONCURRENCY")
    serve_command.set_defaults(run=_serve)
    maintenance_command = commands.add_parser(
        "maintenance", help="run a command, such as a restore, while every service on the database stands aside"
    )
    maintenance_command.add_argument(
        "--wait", type=float, default=60, metavar="SECONDS", help="how long requests may take to end (default: 60)"
    )
    maintenance_command.add_argument("command", nargs=argparse.REMAINDER, help="after --: the command to run")
    maintenance_command.set_defaults(run=_maintain)
    options = parser.parse_args(arguments)
    try:
        sys.exit(options.run(options))
    except (SettingsError, VectorDBError) as error:
        sys.exit(f"pgvector-api: {error}")


def _serve(options: argparse.Namespace) -> None:
    serve(Settings.load(api_host=options.host, api_port=options.port, web_concurrency=options.workers))


def _maintain(options: argparse.Namespace) -> int:
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        raise SettingsError("maintenance: give the command to run after --.")
    return maintain(Settings.load(), command, options.wait)


def maintain(settings: Settings, command: Sequence[str], wait_s: float) -> int:
    """Run a command during maintenance and return its exit code.

    libpq's variables (PGHOST, ...) lead it to the database; with the embedded PostgreSQL, its programs come first in
    PATH.
    """
    logs.configure("WARNING", settings.log_format)
    postgres, url = None, settings.database_url
    try:
        if url is None:
            postgres = EmbeddedPostgres(settings.data_dir)
            url = postgres.start()
        environment = environment_for_command(libpq_variables(url), postgres.programs if postgres else None)
        program = shutil.which(command[0], path=environment["PATH"])
        if program is None:
            raise SettingsError(f"maintenance: there is no program {command[0]}.")
        print("Waiting until the requests that are under way have ended ...", file=sys.stderr)
        with maintenance(url, wait_s):
            print("Every service refuses requests (503) until the command ends.", file=sys.stderr)
            code = subprocess.run([program, *command[1:]], env=environment, check=False).returncode  # noqa: S603
        print(f"The command ended with {code}. Every service goes on within a second.", file=sys.stderr)
        return code
    finally:
        if postgres:
            postgres.stop()


def serve(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM; starts the embedded PostgreSQL when there is no DATABASE_URL, and stops it."""
    signal.signal(signal.SIGTERM, _exit)
    logs.configure(settings.log_level, settings.log_format)
    _check_address(settings.api_host, settings.api_port)
    postgres = None
    try:
        if settings.database_url is None:
            postgres = EmbeddedPostgres(settings.data_dir)
            settings = settings.model_copy(update={"database_url": postgres.start()})
        base = f"http://{settings.api_host}:{settings.api_port}"
        place = f"{postgres.folder} (embedded PostgreSQL)" if postgres else "the database at DATABASE_URL"
        if settings.log_format == "json":
            log.info("serving", extra={"api": base, "docs": f"{base}/docs", "data": place})
        else:
            print(f"API   {base}\nDocs  {base}/docs\nData  {place}\nCtrl-C stops the service.", flush=True)
        settings.export()
        uvicorn.run(
            "pgvector_cli:worker",
            factory=True,
            host=settings.api_host,
            port=settings.api_port,
            workers=settings.web_concurrency,
            timeout_graceful_shutdown=GRACEFUL_SHUTDOWN_S,
            timeout_worker_healthcheck=30,
            # uvicorn's 5 s are shorter than the pauses of many clients, who then write into a closed connection.
            timeout_keep_alive=KEEP_ALIVE_S,
            log_config=None,
            access_log=False,
            server_header=False,
        )
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # once is enough
        if postgres:
            postgres.stop()


def _check_address(host: str, port: int) -> None:
    """Say so before anything is started when the address is taken or is none of this machine's."""
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        reason = str(error.strerror).partition(" (while")[0]
        raise SettingsError(
            f"API_PORT: cannot listen on {host}:{port} ({reason}). Choose another with --host and --port."
        ) from None


def worker() -> FastAPI:
    """The application of one worker process, which finds its settings in the environment."""
    settings = Settings.load()
    logs.configure(settings.log_level, settings.log_format)
    return create_app(settings)


def _exit(_signal: int, _frame: FrameType | None) -> None:
    # uvicorn raises the signal again when it has shut down; without this the process would end at once, and not stop
    # the embedded PostgreSQL.
    sys.exit(0)


if __name__ == "__main__":
    main()
