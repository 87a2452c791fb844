"""How many models run at once, and how long each is said to have run."""

from __future__ import annotations

import threading

import pytest
from support.waiting import DEADLINE_S

from batchyard.pool.worker import turns
from batchyard.pool.worker.turns import Turns, TurnsOnCard


class Clock:
    """``time``, as the test says."""

    now = 100.0

    def perf_counter(self) -> float:
        return self.now


class Model(threading.Thread):
    """Runs when it is let in, for as long as the test says."""

    def __init__(self, running: Turns, clock: Clock) -> None:
        super().__init__(daemon=True)
        self._running = running
        self._clock = clock
        self.is_in, self._may_end, self.has_ended = (threading.Event() for _ in range(3))
        self.seconds = 0.0
        self.start()

    def run(self) -> None:
        with self._running:
            began = self._clock.perf_counter()
            self.is_in.set()
            self._may_end.wait(DEADLINE_S)
            self.seconds = self._running.took(began)
        self.has_ended.set()

    def end(self) -> float:
        assert self.is_in.wait(DEADLINE_S)
        self._may_end.set()
        assert self.has_ended.wait(DEADLINE_S)
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(turns, "time", clock)
    return clock


def begun(running: Turns, clock: Clock) -> Model:
    model = Model(running, clock)
    assert model.is_in.wait(DEADLINE_S)
    return model


def test_on_a_cpu_a_model_runs_from_its_call_on(clock: Clock) -> None:
    running = Turns(2)
    first, second = begun(running, clock), begun(running, clock)
    clock.now += 1
    assert first.end() == 1
    clock.now += 2
    assert second.end() == 3


def test_on_a_card_what_is_launched_ahead_runs_from_the_end_of_the_one_before(clock: Clock) -> None:
    running = TurnsOnCard(1)
    first = begun(running, clock)
    clock.now += 3
    second = begun(running, clock)
    third = Model(running, clock)
    clock.now += 1
    assert first.end() == 4
    assert third.is_in.wait(DEADLINE_S)
    clock.now += 5
    assert second.end() == 5
    clock.now += 2
    assert third.end() == 2
    # Behind nobody.
    clock.now += 10
    fourth = begun(running, clock)
    clock.now += 1
    assert fourth.end() == 1


def test_with_two_at_once_the_third_runs_once_either_is_done(clock: Clock) -> None:
    running = TurnsOnCard(2)
    first, second, third = (begun(running, clock) for _ in range(3))
    clock.now += 1
    assert second.end() == 1
    clock.now += 1
    assert third.end() == 1
    clock.now += 1
    assert first.end() == 3


def test_it_runs_since_the_first_of_two_was_done(clock: Clock) -> None:
    running = TurnsOnCard(2)
    first, second, third = (begun(running, clock) for _ in range(3))
    clock.now += 1
    assert first.end() == 1
    clock.now += 1
    assert second.end() == 2
    clock.now += 1
    assert third.end() == 2


def test_what_was_launched_last_may_be_done_first(clock: Clock) -> None:
    running = TurnsOnCard(1)
    first, second = begun(running, clock), begun(running, clock)
    clock.now += 1
    assert second.end() == 1
    third = begun(running, clock)
    clock.now += 1
    assert first.end() == 2
    clock.now += 1
    assert third.end() == 1
