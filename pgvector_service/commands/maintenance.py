"""`pgvector-api maintenance`: a command that runs while every service on the database stands aside."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence

from pgvector_service import logs
from pgvector_service.settings import Settings, SettingsError, environment_for_command
from pgvector_service.storage.embedded import EmbeddedPostgres
from pgvector_service.storage.maintenance import libpq_variables, maintenance


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
            child = subprocess.Popen([program, *command[1:]], env=environment)  # noqa: S603
            for number in (signal.SIGINT, signal.SIGTERM):
                # Whoever ends this process ends the command first: services must not come back in the middle of it.
                signal.signal(number, lambda received, _: child.send_signal(received))
            code = child.wait()
        print(f"The command ended with {code}. Every service goes on within a second.", file=sys.stderr)
        return code
    finally:
        if postgres:
            postgres.stop()
