"""Work of one kind that arrives together is done together.

While one batch is worked on, what arrives gathers for the next; a request that comes alone is begun at once. Kinds do
not wait for one another as long as there are threads.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Generic, TypeVar

from pgvector_service.errors import Overloaded

K = TypeVar("K", bound=Hashable)
Q = TypeVar("Q")
A = TypeVar("A")
F = TypeVar("F", bound="Future[Any] | asyncio.Future[Any]")


class Gather(Generic[K, Q, A]):
    """Runs `work(kind, requests)`, which returns an answer or an exception for each request, in `threads` threads.

    Of each kind `lanes` batches are under way at a time, each of at most `most` requests. At most `unfinished` requests
    of all kinds are under way or waiting, Overloaded after that; the same for one that has waited `patience_s`.
    """

    def __init__(
        self,
        work: Callable[[K, Sequence[Q]], Sequence[A | Exception]],
        threads: int,
        lanes: int,
        most: int,
        unfinished: int,
        patience_s: float,
    ) -> None:
        self._work = work
        self._lanes = lanes
        self._most = most
        self._free = unfinished
        self._patience_s = patience_s
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="gather")
        self._lock = threading.Lock()
        self._kinds: dict[K, _Kind[Q, A]] = {}

    def submit(self, kind: K, request: Q, future: F) -> F:
        """`future`, which the answer is put into; an asyncio.Future in the thread of its own loop.

        Cancelling it leaves the others of its batch alone.
        """
        with self._lock:
            if not self._free:
                raise Overloaded
            self._free -= 1
            known = self._kinds.setdefault(kind, _Kind())
            known.waiting.append((request, future, time.monotonic()))
            if known.lanes < self._lanes:
                known.lanes += 1
                self._threads.submit(self._run, kind, known)
        return future

    def close(self) -> None:
        """Finish what has been submitted."""
        self._threads.shutdown()

    def _run(self, kind: K, known: "_Kind[Q, A]") -> None:
        with self._lock:
            taken = [known.waiting.popleft() for _ in range(min(self._most, len(known.waiting)))]
        latest = time.monotonic() - self._patience_s
        _pass_on([(future, Overloaded()) for _, future, came in taken if came < latest])
        batch = [(request, future) for request, future, came in taken if came >= latest and not future.cancelled()]
        answers: Sequence[A | Exception]
        try:
            answers = self._work(kind, [request for request, _ in batch]) if batch else []
        except Exception as error:
            answers = [error] * len(batch)
        # The next batch begins before the answers of this one are passed on, which wakes other threads.
        with self._lock:
            self._free += len(taken)
            if known.waiting:
                self._threads.submit(self._run, kind, known)
            else:
                known.lanes -= 1
                if not known.lanes:
                    self._kinds.pop(kind, None)
        _pass_on([(future, answer) for (_, future), answer in zip(batch, answers, strict=True)])


def _pass_on(answers: Iterable[tuple["Future[A] | asyncio.Future[A]", A | Exception]]) -> None:
    """Put each answer into its future. A loop is woken once for all of its own, not once for each."""
    of_loops: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[A], A | Exception]]] = {}
    for future, answer in answers:
        if isinstance(future, Future):
            if future.set_running_or_notify_cancel():
                _settle([(future, answer)])
        else:
            of_loops.setdefault(future.get_loop(), []).append((future, answer))
    for loop, pairs in of_loops.items():
        with suppress(RuntimeError):  # the loop has been closed, and nobody waits
            loop.call_soon_threadsafe(_settle, pairs)


def _settle(pairs: Sequence[tuple["Future[A] | asyncio.Future[A]", A | Exception]]) -> None:
    for future, answer in pairs:
        if future.cancelled():
            continue
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)


class _Kind(Generic[Q, A]):
    """What waits of one kind, and how many batches of it are under way or about to be."""

    def __init__(self) -> None:
        # With the time (time.monotonic) at which it came.
        self.waiting: deque[tuple[Q, Future[A] | asyncio.Future[A], float]] = deque()
        self.lanes = 0
