"""Work of one kind that arrives together is done together.

While one batch is worked on, what arrives gathers for the next; a request that comes alone is begun at once. Kinds do
not wait for one another as long as there are threads.
"""

import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from pgvector_service.errors import Overloaded

K = TypeVar("K", bound=Hashable)
Q = TypeVar("Q")
A = TypeVar("A")


class Gather(Generic[K, Q, A]):
    """Runs `work(kind, requests)`, which returns an answer or an exception for each request, in `threads` threads.

    A batch has at most `most` requests. At most `unfinished` of all kinds are under way or waiting, Overloaded after
    that.
    """

    def __init__(
        self, work: Callable[[K, Sequence[Q]], Sequence[A | Exception]], threads: int, most: int, unfinished: int
    ) -> None:
        self._work = work
        self._most = most
        self._free = unfinished
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="gather")
        self._lock = threading.Lock()
        # A kind is here while a thread works on it or is about to.
        self._waiting: dict[K, deque[tuple[Q, Future[A]]]] = {}

    def submit(self, kind: K, request: Q) -> "Future[A]":
        """The answer to come. Cancelling it leaves the others of its batch alone."""
        future: Future[A] = Future()
        with self._lock:
            if not self._free:
                raise Overloaded
            self._free -= 1
            if kind in self._waiting:
                self._waiting[kind].append((request, future))
            else:
                self._waiting[kind] = deque([(request, future)])
                self._threads.submit(self._run, kind)
        return future

    def close(self) -> None:
        """Finish what has been submitted."""
        self._threads.shutdown()

    def _run(self, kind: K) -> None:
        with self._lock:
            waiting = self._waiting[kind]
            taken = [waiting.popleft() for _ in range(min(self._most, len(waiting)))]
        batch = [(request, future) for request, future in taken if future.set_running_or_notify_cancel()]
        answers: Sequence[A | Exception]
        try:
            answers = self._work(kind, [request for request, _ in batch]) if batch else []
        except Exception as error:
            answers = [error] * len(batch)
        # The next batch begins before the answers of this one are passed on, which wakes other threads.
        with self._lock:
            self._free += len(taken)
            if waiting:
                self._threads.submit(self._run, kind)
            else:
                del self._waiting[kind]
        for (_, future), answer in zip(batch, answers, strict=True):
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
