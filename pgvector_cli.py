"""Door 3, shell: the command `pgvector-api`."""

import argparse
import sys
from collections.abc import Sequence

from pgvector_service import __version__
from pgvector_service.commands.maintenance import maintain
from pgvector_service.commands.serve import serve
from pgvector_service.errors import VectorDBError
from pgvector_service.settings import Settings, SettingsError


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


if __name__ == "__main__":
    main()
