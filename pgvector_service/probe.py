"""Health, asked for in the background, so that /health answers at once whatever the database does."""

import logging
import threading
import time
from typing import Any, Protocol

from pgvector_service.errors import VectorDBError

log = logging.getLogger(__name__)

INTERVAL_S = 1.0
# An answer older than this is no sign of life: the probe itself waits for the database.
STALE_S = 3.0


class Database(Protocol):
    """What the probe needs of a VectorDB."""

    def open(self) -> None:
        """Connect."""

    def check_health(self) -> dict[str, Any]:
        """Ask for a sign of life."""


class Probe:
    """A thread that opens the database, as soon as it can be reached, and then looks after it every second."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="health-probe", daemon=True)
        self._asked = 0.0
        self._answer: dict[str, Any] = {
            "database": False,
            "maintenance": False,
            "pgvector": None,
            "collections_in_memory": 0,
            "memory_bytes": 0,
        }

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """End, after the question that is being asked."""
        self._stop.set()
        self._thread.join()

    def answer(self) -> dict[str, Any]:
        """The last answer of `check_health`, with database False when it is too old to count."""
        fresh = time.monotonic() - self._asked < STALE_S
        return {**self._answer, "database": fresh and self._answer["database"]}

    def _run(self) -> None:
        opened, said = False, ""
        while not self._stop.is_set():
            try:
                if not opened:
                    self._database.open()
                    opened = True
                self._answer = self._database.check_health()
                self._asked = time.monotonic()
                said = ""
            except VectorDBError as error:
                if said != str(error):
                    log.warning("the database is not ready, trying on: %s", error.__cause__ or error)
                said = str(error)
            except Exception:
                log.exception("the health probe failed")
            self._stop.wait(INTERVAL_S)
