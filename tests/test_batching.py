"""What arrives together is done together, and nobody waits for another kind."""

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager

import pytest

from pgvector_service.errors import Overloaded
from pgvector_service.search.batching import Batcher


class Doubler:
    """Doubles numbers, when it is allowed to; refuses negative ones."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, list[int]]] = []
        self.allowed = threading.Event()
        self.begun = threading.Semaphore(0)

    def __call__(self, kind: str, numbers: Sequence[int]) -> list[int | Exception]:
        self.batches.append((kind, list(numbers)))
        self.begun.release()
        if kind == "slow":
            assert self.allowed.wait(10)
        if 0 in numbers:
            raise ZeroDivisionError
        return [2 * number if number > 0 else ValueError(number) for number in numbers]


@contextmanager
def gathering(
    most: int = 64, unfinished: int = 100, patience_s: float = 10
) -> Iterator[tuple[Doubler, Batcher[str, int, int]]]:
    doubler = Doubler()
    gather: Batcher[str, int, int] = Batcher(doubler, 4, most, unfinished, patience_s)
    try:
        yield doubler, gather
    finally:
        doubler.allowed.set()
        gather.close()


def ask(gather: Batcher[str, int, int], kind: str, *numbers: int) -> "list[Future[int]]":
    return [gather.submit(kind, number, Future()) for number in numbers]


def test_what_comes_during_a_batch_goes_together_into_the_next() -> None:
    with gathering(most=3) as (doubler, gather):
        futures = ask(gather, "slow", 1)
        assert doubler.begun.acquire(timeout=10)
        futures += ask(gather, "slow", 2, 3, 4, 5)
        doubler.allowed.set()
        assert [future.result(10) for future in futures] == [2, 4, 6, 8, 10]
        assert doubler.batches == [("slow", [1]), ("slow", [2, 3, 4]), ("slow", [5])]


def test_a_slow_kind_does_not_hold_up_a_quick_one() -> None:
    with gathering() as (doubler, gather):
        slow = ask(gather, "slow", 1, 2)
        assert [future.result(10) for future in ask(gather, "quick", 3, 4)] == [6, 8]
        assert not any(future.done() for future in slow)
        doubler.allowed.set()
        assert [future.result(10) for future in slow] == [2, 4]


def test_one_refused_or_cancelled_leaves_the_others_alone() -> None:
    with gathering() as (doubler, gather):
        first = ask(gather, "slow", 9)
        assert doubler.begun.acquire(timeout=10)
        futures = ask(gather, "slow", 1, -2, 3, 4)
        assert futures[2].cancel()
        doubler.allowed.set()
        assert first[0].result(10) == 18
        assert futures[0].result(10) == 2
        assert isinstance(futures[1].exception(10), ValueError)
        assert futures[3].result(10) == 8
        assert doubler.batches[1] == ("slow", [1, -2, 4])


def test_a_batch_that_fails_fails_all_and_the_kind_lives_on() -> None:
    with gathering() as (_, gather):
        (failed,) = ask(gather, "quick", 0)
        assert isinstance(failed.exception(10), ZeroDivisionError)
        assert ask(gather, "quick", 5)[0].result(10) == 10


def test_a_crowd_is_turned_away_and_room_comes_back() -> None:
    with gathering(unfinished=3) as (doubler, gather):
        futures = ask(gather, "slow", 1, 2, 3)
        with pytest.raises(Overloaded):
            ask(gather, "quick", 4)
        doubler.allowed.set()
        assert [future.result(10) for future in futures] == [2, 4, 6]
        assert ask(gather, "quick", 5)[0].result(10) == 10


def test_who_has_waited_too_long_is_turned_away() -> None:
    with gathering(patience_s=0.1) as (doubler, gather):
        (first,) = ask(gather, "slow", 1)
        assert doubler.begun.acquire(timeout=10)
        (late,) = ask(gather, "slow", 2)
        time.sleep(0.2)
        (in_time,) = ask(gather, "slow", 3)
        doubler.allowed.set()
        assert first.result(10) == 2
        assert isinstance(late.exception(10), Overloaded)
        assert in_time.result(10) == 6


def test_what_waits_when_it_is_closed_is_finished() -> None:
    with gathering(most=1) as (doubler, gather):
        futures = ask(gather, "slow", 1, 2, 3)
        assert doubler.begun.acquire(timeout=10)
        closing = threading.Thread(target=gather.close)
        closing.start()
        while True:
            try:
                futures += ask(gather, "slow", 4)
            except Overloaded:
                break
        doubler.allowed.set()
        closing.join(10)
        assert [future.result(0) for future in futures[:3]] == [2, 4, 6]
        assert all(future.done() for future in futures)


def test_a_loop_gets_its_answers_in_its_own_thread() -> None:
    with gathering() as (doubler, gather):

        async def several() -> list[int | BaseException]:
            loop = asyncio.get_running_loop()
            futures = [gather.submit("slow", number, loop.create_future()) for number in (1, 2, -3, 4)]
            futures[1].cancel()
            doubler.allowed.set()
            return list(await asyncio.gather(*futures, return_exceptions=True))

        one, two, three, four = asyncio.run(several())
        assert (one, four) == (2, 8)
        assert isinstance(two, asyncio.CancelledError)
        assert isinstance(three, ValueError)
