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


class Batcher(Generic[K, Q, A]):
    """Runs `work(kind, requests)`, which returns an answer or an exception for each request, in `threads` threads.

    One batch of a kind is under way at a time, of at most `most` requests. At most `unfinished` requests of all kinds
    are under way or waiting, Overloaded after that; the same for one that has waited `patience_s`.
    """

    def __init__(
        self,
        work: Callable[[K, Sequence[Q]], Sequence[A | Exception]],
        threads: int,
        most: int,
        unfinished: int,
        patience_s: float,
    ) -> None:
        self._work = work
        self._most = most
        self._free = unfinished
        self._closed = False
        self._patience_s = patience_s
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="batches")
        self._lock = threading.Lock()
        # A kind is here while a batch of it is under way or about to be. With each request the time at which it came.
        self._waiting: dict[K, deque[tuple[Q, Future[A] | asyncio.Future[A], float]]] = {}

    def submit(self, kind: K, request: Q, future: F) -> F:
        """`future`, which the answer is put into; an asyncio.Future in the thread of its own loop.

        Cancelling it leaves the others of its batch alone.
        """
        entry = request, future, time.monotonic()
        with self._lock:
            if self._closed or not self._free:
                raise Overloaded
            self._free -= 1
            if kind in self._waiting:
                self._waiting[kind].append(entry)
            else:
                self._waiting[kind] = deque([entry])
                self._threads.submit(self._run, kind)
        return future

    def close(self) -> None:
        """Finish what has been submitted, and take no more."""
        with self._lock:
            self._closed = True
        self._threads.shutdown()

    def _run(self, kind: K) -> None:
        """Answer the requests of a kind, one batch at a time; other kinds get their turn in between."""
        while self._answer_batch(kind):
            with suppress(RuntimeError):
                # Refused when no more work is taken; then the rest is done here.
                self._threads.submit(self._run, kind)
                return

    def _answer_batch(self, kind: K) -> bool:
        """Answer what waits of a kind; False when nothing has come meanwhile."""
        with self._lock:
            waiting = self._waiting[kind]
            taken = [waiting.popleft() for _ in range(min(self._most, len(waiting)))]
        latest = time.monotonic() - self._patience_s
        _pass_on([(future, Overloaded()) for _, future, came in taken if came < latest])
        batch = [(request, future) for request, future, came in taken if came >= latest and not future.cancelled()]
        answers: Sequence[A | Exception]
        try:
            answers = self._work(kind, [request for request, _ in batch]) if batch else []
        except Exception as error:
            answers = [error] * len(batch)
        _pass_on([(future, answer) for (_, future), answer in zip(batch, answers, strict=True)])
        with self._lock:
            self._free += len(taken)
            if not waiting:
                del self._waiting[kind]
            return bool(waiting)


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
