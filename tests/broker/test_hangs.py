"""Workers that hang, in virtual time: who is killed, and when."""

from __future__ import annotations

from typing import Any

import pytest
from support.broker_builders import make_model, make_report, make_target
from support.poison import requests_of, run_all
from support.virtual_broker import VirtualBroker

TIMEOUT_S = 5.0


def broker(
    workers: int = 1, concurrent_batches: int = 1, timeout_s: float = TIMEOUT_S, **parameters: Any
) -> VirtualBroker:
    made = VirtualBroker(make_model(timeout_s=timeout_s, **parameters))
    for _ in range(workers):
        made.start_worker(concurrent_batches=concurrent_batches)
    return made


def test_a_worker_is_killed_when_its_batch_has_run_too_long() -> None:
    b = broker()
    b.ask(1)
    b.tick_one()
    assert b.state.next_wakeup() == b.now + TIMEOUT_S
    assert not b.state.is_quiet
    b.tick(TIMEOUT_S - 0.001)
    assert b.killed == []
    b.tick(0.001)
    assert b.killed == [(0, "a batch ran longer than batch_execution_timeout = 5 s")]
    assert b.state.next_wakeup() == float("inf")
    b.tick(100.0)
    assert len(b.killed) == 1


def test_a_worker_that_answers_in_time_lives() -> None:
    b = broker()
    b.ask(1)
    batch = b.tick_one()
    b.tick(TIMEOUT_S - 0.001)
    b.finish(batch)
    b.tick(1.0)
    assert b.killed == []
    assert b.state.next_wakeup() == float("inf")
    assert b.state.is_quiet


def test_time_counts_from_when_the_worker_took_the_batch_up() -> None:
    b = broker()
    b.ask(*[1] * 8)
    first, ahead = b.tick()
    b.now += 4.0
    b.finish(first)
    assert b.state.next_wakeup() == b.now - 4.0 + TIMEOUT_S
    # The first one's time is over, the one that was ahead has run for a second.
    b.tick(1.0)
    assert b.killed == []
    assert b.state.next_wakeup() == pytest.approx(b.now + 4.0)
    b.tick(3.9)
    assert b.killed == []
    b.tick(0.11)
    assert [worker for worker, _ in b.killed] == [ahead.worker_id]


def test_a_batch_that_raised_has_ended_too() -> None:
    b = broker()
    b.ask(1)
    b.fail(b.tick_one())
    b.tick(10.0)
    assert b.killed == []


def test_two_batches_at_once_have_a_time_each() -> None:
    b = broker(concurrent_batches=2)
    b.ask(*[1] * 4)
    first = b.tick_one()
    b.ask(*[1] * 8)
    second, ahead = b.tick(2.0)
    b.finish(second)
    b.tick(2.9)
    assert b.killed == []
    b.finish(first)
    # The one that was ahead began when the second was answered.
    b.tick(2.0)
    assert b.killed == []
    b.tick(0.2)
    assert [worker for worker, _ in b.killed] == [ahead.worker_id]


def test_each_worker_that_hangs_is_killed() -> None:
    b = broker(workers=3)
    for _ in range(2):
        b.ask(*[1] * 4)
    b.tick()
    b.tick(TIMEOUT_S)
    assert sorted(worker for worker, _ in b.killed) == [0, 1]
    assert sorted(b.workers) == [2]


def test_a_model_without_a_timeout_may_run_for_ever() -> None:
    b = broker(timeout_s=float("inf"))
    b.ask(1)
    batch = b.tick_one()
    assert b.state.next_wakeup() == float("inf")
    b.tick(1e9)
    assert b.killed == []
    b.finish(batch)


def test_each_model_has_its_own_timeout() -> None:
    b = VirtualBroker(make_model("m", timeout_s=1.0), make_model("n", timeout_s=10.0))
    reports = make_report(name="m"), make_report(name="n")
    for _ in range(2):
        b.start_worker(*reports)
    b.ask(1, target=make_target(model="n"))
    slow = b.tick_one()
    b.ask(1)
    fast = b.tick_one()
    b.tick(1.0)
    assert [worker for worker, _ in b.killed] == [fast.worker_id]
    b.finish(slow)


def test_what_hung_runs_again_alone_and_what_was_ahead_goes_back() -> None:
    b = broker(workers=2, max_batch_size=2)
    hangs, ahead = b.ask(1, 1), b.ask(1, 1, client=b"2")
    other = b.ask(1, 1, client=b"3")
    batches = b.tick()
    assert len(batches) == 3
    # The second worker's.
    b.finish(next(batch for batch in batches if batch.worker_id == 1))
    b.tick(TIMEOUT_S)
    assert [worker for worker, _ in b.killed] == [0]
    b.reap(0, why=b.killed[0][1])
    assert {group for group, _ in b.suspects} == {hangs}
    run_all(b)
    assert all(b.answers[group] == ["OK", "OK"] for group in (hangs, ahead, other))


def test_a_request_that_hangs_every_time_is_the_culprit() -> None:
    b = broker(max_batch_size=4)
    group = b.ask(1, 1, 1)
    kills = 0
    for _ in range(10):
        b.tick()
        for batch in list(b.running.values()):
            if (group, 1) not in requests_of(batch):
                b.finish(batch)
                continue
            b.tick(TIMEOUT_S)
            worker, why = b.killed[kills]
            kills += 1
            b.reap(worker, comes_back=True, why=why)
            b.start_worker(slot=0)
    assert b.answers[group] == ["OK", "INTERNAL", "OK"]
    assert kills == 2
    assert "(a batch ran longer than batch_execution_timeout = 5 s), alone" in b.messages[-1]


def test_a_worker_that_hangs_while_it_retires_is_killed_too() -> None:
    b = broker(workers=2)
    group = b.ask(1)
    batch = b.tick_one()
    b.retire(batch.worker_id)
    b.tick(TIMEOUT_S)
    assert [worker for worker, _ in b.killed] == [batch.worker_id]
    b.reap(batch.worker_id)
    run_all(b)
    assert (b.answers[group], b.retired) == (["OK"], [])


def test_a_worker_that_died_before_is_not_killed() -> None:
    b = broker(workers=2)
    b.ask(1)
    b.lose(b.tick_one().worker_id)
    b.tick(TIMEOUT_S)
    assert b.killed == []


def test_a_timeout_that_was_changed_holds_for_what_runs() -> None:
    b = broker()
    b.ask(1)
    b.tick_one()
    b.catalog.update([make_model(timeout_s=1.0)])
    b.tick(TIMEOUT_S)
    assert [worker for worker, _ in b.killed] == [0]
