"""Requests that are refused with 503, in the log: a line when that begins and one when it is over, not one for each."""

import logging
import threading
import time
from dataclasses import dataclass

from pgvector_service.errors import DatabaseUnavailable, Unavailable

log = logging.getLogger(__name__)


@dataclass
class _Spell:
    """A time in which requests are refused for one kind of reason."""

    began: float
    last: float
    refused: int = 0
    goes_on: bool = True


class Refusals:
    """Counts what one process refuses, by kind of error; safe to share between threads."""

    def __init__(self) -> None:
        self._spells: dict[str, _Spell] = {}
        self._lock = threading.Lock()

    def add(self, error: Unavailable, requests: int = 1) -> None:
        """Count requests that have been refused; the first of a kind is written, with its reason."""
        now = time.monotonic()
        with self._lock:
            is_new = error.code not in self._spells
            spell = self._spells.setdefault(error.code, _Spell(now, now))
            spell.last, spell.goes_on = now, True
            spell.refused += requests
        if is_new:
            begins = "the database is away" if _is_away(error.code) else f"requests are refused, {error.code}"
            log.warning("%s: %s", begins, error.reason or error.message)

    def settle(self) -> None:
        """Write how many were refused of each kind that has not come up since the last call; called every second."""
        with self._lock:
            over = {code: spell for code, spell in self._spells.items() if not spell.goes_on}
            for code in over:
                del self._spells[code]
            for spell in self._spells.values():
                spell.goes_on = False
        for code, spell in over.items():
            ends = "the database is back" if _is_away(code) else f"requests are served again, {code}"
            seconds = spell.last - spell.began
            log.info(
                "%s: %d requests were refused in %.1f s",
                ends,
                spell.refused,
                seconds,
                extra={"code": code, "refused": spell.refused},
            )


def _is_away(code: str) -> bool:
    return code == DatabaseUnavailable().code
