"""``PredictFuture`` is a stock future to all who look at it, whatever it leaves out."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, InvalidStateError, ThreadPoolExecutor
from typing import Any, cast
from unittest import mock

import numpy as np
import pytest
from support.waiting import DEADLINE_S

from batchyard.clients import errors, futures
from batchyard.clients.calls import resolve
from batchyard.clients.client import Client
from batchyard.clients.futures import PredictFuture

ROUNDS = 300
Y = {"y": np.zeros(1)}
ERROR = errors.Internal("it raised")
End = Callable[[PredictFuture], object]


def future() -> PredictFuture:
    """One of no client: it has no call that could be given up."""
    return PredictFuture(cast(Client, None))


def on_thread(function: Callable[[], object]) -> None:
    """Runs what might wait for ever; fails if it does."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    thread.join(DEADLINE_S)
    assert not thread.is_alive(), "it waits for ever"


@contextlib.contextmanager
def many_switches() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def look_at(_: PredictFuture) -> None:
    """Nobody has waited for it yet."""


def have_waited(future: PredictFuture) -> None:
    """Somebody has: it has a condition."""
    with pytest.raises(TimeoutError):
        future.result(0)


@pytest.mark.parametrize("before", [look_at, have_waited])
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (lambda f: f.set_result(Y), lambda f: f.set_result({})),
        (lambda f: f.set_result(Y), lambda f: f.set_exception(ERROR)),
        (lambda f: f.set_exception(ERROR), lambda f: f.set_result(Y)),
        (lambda f: f.cancel(), lambda f: f.set_result(Y)),
        (lambda f: f.cancel(), lambda f: f.set_exception(ERROR)),
    ],
)
def test_a_second_end_is_refused(before: End, first: End, second: End) -> None:
    ended = future()
    before(ended)
    first(ended)
    state = ended._state
    refused = []

    def end_again() -> None:
        with pytest.raises(InvalidStateError):
            second(ended)
        refused.append(True)

    on_thread(end_again)
    assert refused
    assert ended.done()
    assert ended._state == state
    if not ended.cancelled() and ended.exception(0) is None:
        assert ended.result(0) is Y
    # Others hear nothing of it.
    other = future()
    on_thread(lambda: other.set_result(Y))
    assert other.result(0) is Y


def test_errors_are_raised_each_time() -> None:
    ended = future()
    ended.set_exception(ERROR)
    for _ in range(2):
        with pytest.raises(errors.Internal, match="it raised"):
            ended.result()
    assert ended.exception() is ERROR


def test_wait_sees_what_is_done_and_what_ends_meanwhile() -> None:
    done, later, never = future(), future(), future()
    done.set_result(Y)
    assert concurrent.futures.wait([done, later], 0) == ({done}, {later})
    timer = threading.Thread(target=later.set_result, args=(Y,))
    timer.start()
    assert concurrent.futures.wait([done, later], DEADLINE_S) == ({done, later}, set())
    timer.join()
    failed = future()
    failed.set_exception(ERROR)
    first = concurrent.futures.FIRST_EXCEPTION
    assert failed in concurrent.futures.wait([never, failed], DEADLINE_S, first).done


def test_as_completed_gives_each_once() -> None:
    futures = [future() for _ in range(50)]
    for i in range(0, 50, 5):
        futures[i].set_result(Y)

    def end_others() -> None:
        for each in futures:
            if not each.done():
                each.set_result(Y)

    thread = threading.Thread(target=end_others)
    thread.start()
    given: list[Future[Any]] = list(futures)
    seen = list(concurrent.futures.as_completed(given, DEADLINE_S))
    thread.join()
    assert len(seen) == 50
    assert set(seen) == set(futures)


@pytest.mark.parametrize("early", [True, False])
def test_asyncio_can_wait_for_it(early: bool) -> None:
    async def wait() -> Any:
        waiting = future()
        if early:
            waiting.set_result(Y)
        wrapped = asyncio.wrap_future(waiting)
        thread = threading.Thread(target=resolve, args=(waiting, Y))
        thread.start()
        try:
            return await asyncio.wait_for(wrapped, DEADLINE_S)
        finally:
            thread.join()

    assert asyncio.run(wait()) is Y


def test_cancelling_in_asyncio_cancels_it() -> None:
    async def wait() -> PredictFuture:
        waiting = future()
        wrapped = asyncio.wrap_future(waiting)
        wrapped.cancel()
        with pytest.raises(asyncio.CancelledError):
            await wrapped
        return waiting

    assert asyncio.run(wait()).cancelled()


@pytest.mark.parametrize("end", [lambda f: f.set_result(Y), lambda f: f.cancel()])
def test_callbacks_run_once_before_and_after_the_end(end: End) -> None:
    called: list[tuple[str, Any]] = []
    ended = future()
    ended.add_done_callback(lambda f: called.append(("before", f)))
    end(ended)
    ended.add_done_callback(lambda f: called.append(("after", f)))
    assert called == [("before", ended), ("after", ended)]


def test_callbacks_that_come_as_it_ends_all_run() -> None:
    with many_switches(), ThreadPoolExecutor(1) as pool:
        for _ in range(ROUNDS):
            ending = future()
            called: list[Any] = []
            start = threading.Barrier(2)

            def end(ending: PredictFuture = ending, start: threading.Barrier = start) -> None:
                start.wait(DEADLINE_S)
                ending.set_result(Y)

            task = pool.submit(end)
            start.wait(DEADLINE_S)
            ending.add_done_callback(called.append)
            task.result(DEADLINE_S)
            assert called == [ending]


def test_a_result_is_told_to_who_begins_to_wait_as_it_comes() -> None:
    with many_switches(), ThreadPoolExecutor(1) as pool:
        for _ in range(ROUNDS):
            ending = future()
            start = threading.Barrier(2)

            def wait(ending: PredictFuture = ending, start: threading.Barrier = start) -> Any:
                start.wait(DEADLINE_S)
                return ending.result(DEADLINE_S)

            task = pool.submit(wait)
            start.wait(DEADLINE_S)
            ending.set_result(Y)
            assert task.result(DEADLINE_S) is Y


def test_cancelling_while_the_answer_comes_has_one_end() -> None:
    """The I/O thread sets the result as another thread cancels."""
    ends = set()
    with many_switches(), ThreadPoolExecutor(2) as pool:
        for _ in range(ROUNDS):
            ending = future()
            called: list[Any] = []
            ending.add_done_callback(called.append)
            waiting = pool.submit(concurrent.futures.wait, [ending], DEADLINE_S)
            start = threading.Barrier(2)

            def answer(ending: PredictFuture = ending, start: threading.Barrier = start) -> None:
                start.wait(DEADLINE_S)
                resolve(ending, Y)

            task = pool.submit(answer)
            start.wait(DEADLINE_S)
            cancelled = ending.cancel()
            task.result(DEADLINE_S)
            assert waiting.result(DEADLINE_S).done == {ending}
            assert ending.cancelled() == cancelled
            if cancelled:
                with pytest.raises(CancelledError):
                    ending.result(0)
            else:
                assert ending.result(0) is Y
            assert called == [ending]
            ends.add(cancelled)
    assert ends


def test_two_threads_that_set_a_result_set_one() -> None:
    with many_switches(), ThreadPoolExecutor(2) as pool:
        for _ in range(ROUNDS):
            ending = future()
            start = threading.Barrier(2)

            def end(ending: PredictFuture = ending, start: threading.Barrier = start) -> bool:
                start.wait(DEADLINE_S)
                try:
                    ending.set_result(Y)
                except InvalidStateError:
                    return False
                return True

            tasks = [pool.submit(end) for _ in range(2)]
            assert sorted(task.result(DEADLINE_S) for task in tasks) == [False, True]


def test_the_collector_may_end_futures_while_one_begins_to_wait() -> None:
    """Making a condition is Python code: what finalizers do in there must not wait for it."""
    made = futures._Condition
    ended, other = future(), future()

    def make(*args: Any) -> threading.Condition:
        # Threads make some too, with a lock of theirs.
        if not args and not ended.done():
            ended.set_result(Y)
        return made(*args)

    with mock.patch.object(futures, "_Condition", make):
        on_thread(other.cancel)
    assert ended.result(0) is Y
    assert other.cancelled()
