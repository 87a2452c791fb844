"""The broker in virtual time when there is more to do than time.

A batch takes 20 ms, whatever is in it, and the broker has learned that.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from support.broker_builders import make_model, make_report, make_target
from support.virtual_broker import VirtualBroker

from batchyard.broker.events import Batch
from batchyard.broker.queue import RequestGroup

BATCH_S = 0.02
DEADLINE, FULL = "DEADLINE_EXCEEDED", "UNAVAILABLE"


def run(b: VirtualBroker, batch: Batch) -> None:
    """A batch takes its time."""
    b.now = batch.running_since + BATCH_S
    b.finish(batch)


def broker(*names: str, workers: int = 1, **parameters: Any) -> VirtualBroker:
    """Models that have run a few batches of one row and of four."""
    names = names or ("m",)
    parameters = {"max_batch_size": 4, "max_enqueued_batches": 1000, **parameters}
    b = VirtualBroker(*(make_model(name, **parameters) for name in names))
    for _ in range(workers):
        b.start_worker(*(make_report(name=name) for name in names))
    for name in names:
        for rows in (1, 1, 1, 4, 4, 4):
            b.ask(*[1] * rows, target=make_target(model=name))
            run(b, b.tick_one(parameters.get("batch_timeout_micros", 0) / 1e6))
    return b


def answers(*groups: RequestGroup, b: VirtualBroker) -> list[str | None]:
    return [answer for group in groups for answer in b.answers[group]]


# On arrival


def test_what_the_backlog_makes_late_is_refused_at_once() -> None:
    b = broker()
    asked = [b.ask(1, timeout_s=0.1) for _ in range(40)]
    # Five batches of four can be done in 100 ms; but a little is kept in reserve.
    assert Counter(answers(*asked, b=b)) == {None: 16, DEADLINE: 24}
    assert b.state.catalog.models["m", 1].misses == {"refused": 24}


def test_a_refusal_says_what_was_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    b = broker()
    refusals: list[str] = []
    monkeypatch.setattr(b, "check", lambda action: refusals.append(action.error.message))
    monkeypatch.setattr(b, "check_books", lambda: None)
    b.ask(1, timeout_s=0.01)
    b.ask(*[1] * 400, timeout_s=1.5)
    assert refusals == [
        f"model 'm': behind what runs and 0 rows that wait there is no answer within {left} ms: "
        "a batch of 4 takes 20 ms"
        for left in (10, 1500)
    ]


def test_of_a_message_those_that_can_be_in_time_are_taken() -> None:
    b = broker()
    group = b.ask(*[1] * 40, timeout_s=0.1)
    assert answers(group, b=b) == [None] * 16 + [DEADLINE] * 24


def test_of_a_message_of_mixed_deadlines_those_are_refused_that_would_be_late() -> None:
    b = broker()
    b.ask(1)
    b.tick_one()
    group = b.ask(*[1] * 12, timeout_s=[0.015, 0.1, None] * 4)
    assert answers(group, b=b) == [DEADLINE, None, None] * 4


def test_no_more_workers_are_counted_on_than_a_model_may_use() -> None:
    b = broker(workers=3, num_batch_threads=1)
    b.ask(*[1] * 4)
    b.tick_one()
    assert answers(b.ask(1, timeout_s=0.03), b=b) == [DEADLINE]
    assert answers(b.ask(1, timeout_s=0.05), b=b) == [None]


def test_more_workers_take_more() -> None:
    b = broker(workers=3)
    asked = [b.ask(1, timeout_s=0.1) for _ in range(60)]
    assert Counter(answers(*asked, b=b)) == {None: 48, DEADLINE: 12}


def test_what_runs_at_once_needs_no_reserve() -> None:
    b = broker()
    assert answers(b.ask(1, timeout_s=0.0201), b=b) == [None]
    assert answers(b.ask(1, timeout_s=0.0199), b=b) == [DEADLINE]


def test_nothing_is_refused_while_the_workers_are_set_apart_for_suspects() -> None:
    b = broker()
    b.ask(1, 1)
    b.tick_one()
    worker = b.die(0)
    retry = b.tick_one()
    assert b.state.workers[worker].set_apart
    group = b.ask(1, timeout_s=10.0)
    assert answers(group, b=b) == [None]
    run(b, retry)
    run(b, b.tick_one())
    run(b, b.tick_one())
    assert None not in answers(group, b=b)


def test_requests_without_a_deadline_are_never_refused_for_time() -> None:
    b = broker()
    assert set(answers(*(b.ask(1) for _ in range(1000)), b=b)) == {None}


def test_an_earlier_deadline_is_not_refused_for_what_goes_after_it() -> None:
    b = broker()
    b.ask(*[1] * 40, timeout_s=1.0)
    assert answers(b.ask(1, timeout_s=0.1), b=b) == [None]


def test_after_a_while_a_doubted_prediction_is_tried() -> None:
    b = broker()
    assert answers(b.ask(1, timeout_s=0.015), b=b) == [DEADLINE]
    b.now += 3.0
    group = b.ask(1, timeout_s=0.015)
    run(b, b.tick_one())
    assert b.state.catalog.models["m", 1].late_s == pytest.approx(BATCH_S)
    b.now += 0.1
    assert answers(b.ask(1, timeout_s=0.015), b=b) == [DEADLINE]
    assert answers(group, b=b) != [DEADLINE]


# Before a batch leaves


def test_what_cannot_be_in_time_any_more_makes_room_for_what_is_behind() -> None:
    b = broker()
    running = b.ask(*[1] * 4)
    first = b.tick_one()
    late = [b.ask(1, timeout_s=0.045) for _ in range(4)]
    later = [b.ask(1, timeout_s=0.2) for _ in range(4)]
    # The batch takes longer than it should.
    b.now += 0.03
    b.finish(first)
    batch = b.tick_one()
    assert answers(*late, b=b) == [DEADLINE] * 4
    assert [part.group for part in batch.parts] == later
    assert b.state.catalog.models["m", 1].misses["dropped"] == 4
    assert None not in answers(running, b=b)


def test_a_batch_is_handed_to_a_worker_just_before_it_is_free() -> None:
    b = broker()
    b.ask(1)
    first = b.tick_one()
    b.ask(1)
    assert b.tick() == []
    wakeup = b.state.next_wakeup()
    assert 0.0185 < wakeup - first.running_since < BATCH_S
    second = b.tick_one(wakeup - b.now)
    b.finish(first)
    b.finish(second)


def test_a_batch_timeout_ends_before_the_deadline_is_missed() -> None:
    b = broker(batch_timeout_micros=10_000_000)
    # As broker() waits for these, too.
    group = b.ask(1, timeout_s=0.1)
    assert b.tick() == []
    wakeup = b.state.next_wakeup()
    assert 0.06 < wakeup - b.now < 0.075
    run(b, b.tick_one(wakeup - b.now))
    assert None not in answers(group, b=b)


# Between models


def test_a_hot_model_leaves_the_others_their_share() -> None:
    b = broker("hot", "cold")
    hot, cold = make_target(model="hot"), make_target(model="cold")
    b.ask(*[1] * 400, target=hot, client=b"h")
    served: Counter[str] = Counter()
    batch = b.tick_one()
    for _ in range(40):
        b.ask(*[1] * 4, target=cold, client=b"c")
        run(b, batch)
        served[batch.lane.model.name] += 1
        batch = b.tick_one()
    assert 18 <= served["cold"] <= 22


def test_shares_are_as_configured() -> None:
    b = broker("hot", "cold")
    b.state.catalog.models["hot", 1].share = 3.0
    for name in ("hot", "cold"):
        b.ask(*[1] * 400, target=make_target(model=name), client=name.encode())
    served: Counter[str] = Counter()
    batch = b.tick_one()
    for _ in range(80):
        run(b, batch)
        served[batch.lane.model.name] += 1
        batch = b.tick_one()
    assert 55 <= served["hot"] <= 65


# A queue that stands


def test_a_standing_queue_is_shed_when_asked_to() -> None:
    b = broker(queue_delay_target_micros=50_000)
    asked = [b.ask(*[1] * 40)]
    batch = b.tick_one()
    for _ in range(20):
        asked.append(b.ask(*[1] * 8))
        run(b, batch)
        batch = b.tick_one()
    counts = Counter(answers(*asked, b=b))
    assert counts[FULL] > 100
    assert b.state.catalog.models["m", 1].shed == counts[FULL]
    # What is left has not waited for long.
    assert b.now - batch.lane.oldest_arrival < 0.1


def test_a_short_burst_is_not_shed() -> None:
    b = broker(queue_delay_target_micros=50_000)
    group = b.ask(*[1] * 20)
    while None in answers(group, b=b):
        run(b, b.tick_one())
    assert FULL not in answers(group, b=b)


# What is counted


def test_late_answers_are_counted_by_the_time_that_they_cost() -> None:
    b = broker()
    model = b.state.catalog.models["m", 1]
    busy_s = model.busy_s
    b.ask(1, timeout_s=0.025)
    b.ask(1)
    batch = b.tick_one()
    b.now += 0.03
    b.finish(batch)
    assert model.busy_s - busy_s == pytest.approx(0.03)
    assert model.late_s == pytest.approx(0.015)
    assert model.errors.accuracy.count > 0


def test_a_long_lane_is_cleared_in_no_time() -> None:
    """Each ticket stands once, whoever comes and goes."""
    b = broker(max_enqueued_batches=10_000)
    kept = [b.ask(1, timeout_s=100.0) for _ in range(50)]
    for group in [b.ask(1, timeout_s=100.0, client=b"l") for _ in range(1000)]:
        lane = group.lane
    b.leave(b"l")
    assert lane.queued_rows == 50
    assert len(lane._tickets) <= 1050
    for _ in range(3):
        lane.give_back(lane.take(4))
        assert len({id(ticket) for ticket in lane._tickets}) == len(lane._tickets)
    assert set(answers(*kept, b=b)) == {None}
