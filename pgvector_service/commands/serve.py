"""`pgvector-api serve`: the API in one or more worker processes."""

import logging
import signal
import socket
import sys
from types import FrameType

import uvicorn
from fastapi import FastAPI

from pgvector_api import create_app
from pgvector_service import logs
from pgvector_service.settings import Settings, SettingsError
from pgvector_service.storage.embedded import EmbeddedPostgres

log = logging.getLogger(__name__)

# Requests in flight when the service is told to stop; statements are bounded by STATEMENT_TIMEOUT_S in any case.
GRACEFUL_SHUTDOWN_S = 10
KEEP_ALIVE_S = 75


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
            "pgvector_service.commands.serve:worker",
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
