"""Health, asked for in the background, so that /health answers at once whatever the database does."""

import logging
import threading
import time
from typing import Any, Protocol

from pgvector_service.errors import DatabaseUnavailable, VectorDBError
from pgvector_service.web.refusals import Refusals

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
    """A thread that opens the database, as soon as it can be reached, and then looks after it every second.

    When it is away `refusals` are told, and every second to settle.
    """

    def __init__(self, database: Database, refusals: Refusals) -> None:
        self._database = database
        self._refusals = refusals
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
        opened = False
        while not self._stop.is_set():
            try:
                if not opened:
                    self._database.open()
                    opened = True
                answer = self._database.check_health()
                reason = answer.pop("reason")
                self._answer, self._asked = answer, time.monotonic()
                if reason:
                    self._refusals.add(DatabaseUnavailable(reason=reason), 0)
            except VectorDBError as error:
                self._refusals.add(DatabaseUnavailable(reason=error.reason or error.message), 0)
            except Exception:
                log.exception("the health probe failed")
            self._refusals.settle()
            self._stop.wait(INTERVAL_S)
