"""Counting and timing of calls; what they count is sure, how long it takes is not asserted."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future

from batchyard.benchmarks.timing import awaits_per_s, calls_per_s, futures_per_s, p50_us


def test_calls_are_made_at_least_once_however_short_the_time() -> None:
    calls: list[None] = []
    assert p50_us(lambda: calls.append(None), 1e-9) > 0
    assert calls_per_s(lambda: calls.append(None), 1e-9) > 0
    # Each warms up with a call that does not count.
    assert len(calls) == 4


class Answers:
    """Futures that are done when they are asked for, and how many were under way at most."""

    def __init__(self) -> None:
        self.submitted = self.taken = self.most = 0

    def submit(self) -> Future[None]:
        """A request."""
        self.submitted += 1
        self.most = max(self.most, self.submitted - self.taken)
        return _Answer(self)


class _Answer(Future[None]):
    def __init__(self, answers: Answers) -> None:
        super().__init__()
        self._answers = answers

    def result(self, timeout: float | None = None) -> None:
        self._answers.taken += 1


def test_as_many_futures_are_under_way_as_asked_and_none_is_left() -> None:
    answers = Answers()
    assert futures_per_s(answers.submit, in_flight=8, at_once=4, seconds=1e-9) > 0
    assert answers.most == 8
    assert answers.taken == answers.submitted
    # A step before the clock starts, a step that counts, and what was under way then.
    assert answers.submitted == 4 + 4 + 8


def test_awaits_run_side_by_side() -> None:
    running = most = 0

    async def call() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    assert asyncio.run(awaits_per_s(call, in_flight=5, seconds=0.01)) > 0
    assert most == 5
    assert running == 0
