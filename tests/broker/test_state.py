"""The broker in virtual time: when batches go out, with which rows, to which worker.

``VirtualBroker`` checks every action and every count; these tests say what must happen.
"""

from __future__ import annotations

from typing import Any

import pytest
from support.broker_builders import make_model, make_report, make_signature, make_target
from support.virtual_broker import VirtualBroker

from batchyard.broker import events
from batchyard.broker.events import Batch, Refuse
from batchyard.wire.errors import InvalidArgument

PATIENT = 10_000  # microseconds


def broker(workers: int = 1, concurrent_batches: int = 1, **parameters: Any) -> VirtualBroker:
    made = VirtualBroker(make_model(**parameters))
    for _ in range(workers):
        made.start_worker(concurrent_batches=concurrent_batches)
    return made


def sizes(batches: list[Batch]) -> list[int]:
    return [batch.rows for batch in batches]


# When a batch is ripe


def test_a_request_gets_its_answer() -> None:
    b = broker()
    group = b.ask(1)
    b.finish(b.tick_one())
    assert b.answers[group] == ["OK"]
    assert b.state.is_idle


def test_nothing_goes_out_before_time_passes() -> None:
    # What arrives together leaves together.
    b = broker()
    for _ in range(3):
        b.ask(1)
    assert not b.running
    assert sizes(b.tick()) == [3]


def test_a_full_batch_goes_at_once() -> None:
    b = broker(batch_timeout_micros=PATIENT)
    b.ask(1, 1, 1)
    assert b.tick() == []
    b.ask(1)
    assert b.state.next_wakeup() <= b.now
    assert sizes(b.tick()) == [4]


def test_a_batch_goes_when_its_oldest_row_has_waited_the_timeout() -> None:
    b = broker(batch_timeout_micros=PATIENT)
    b.ask(1)
    assert b.tick(0.006) == []
    b.ask(1)
    assert b.state.next_wakeup() == pytest.approx(b.now + 0.004)
    assert b.tick(0.0039) == []
    assert sizes(b.tick(0.0002)) == [2]
    assert b.state.next_wakeup() == float("inf")


def test_a_batch_goes_when_half_the_time_to_its_deadline_is_left() -> None:
    b = broker(batch_timeout_micros=PATIENT)
    b.ask(1, timeout_s=0.004)
    assert b.state.next_wakeup() == pytest.approx(b.now + 0.002)
    assert b.tick(0.0019) == []
    assert sizes(b.tick(0.0002)) == [1]


def test_a_timeout_of_zero_still_gathers_while_workers_are_busy() -> None:
    b = broker()
    b.ask(1)
    running = b.tick_one()
    for _ in range(3):
        b.ask(1)
        assert b.tick(0.001) == []
    b.finish(running)
    assert sizes(b.tick()) == [3]


def test_a_ripe_batch_keeps_growing_until_it_is_handed_over() -> None:
    b = broker(batch_timeout_micros=PATIENT)
    b.ask(1, 1, 1, 1)
    running = b.tick_one()
    b.ask(1)
    assert b.tick(1.0) == []
    b.ask(1)
    b.finish(running)
    assert sizes(b.tick()) == [2]


def test_rows_beyond_a_full_batch_wait_for_their_own_timeout() -> None:
    b = broker(workers=2, batch_timeout_micros=PATIENT)
    b.ask(*[1] * 4)
    b.ask(1)
    assert sizes(b.tick()) == [4]
    assert b.tick(0.0099) == []
    assert sizes(b.tick(0.0002)) == [1]


def test_the_deadline_of_rows_that_went_out_hurries_nobody() -> None:
    b = broker(workers=2, batch_timeout_micros=PATIENT)
    b.ask(*[1] * 4, timeout_s=0.002)
    b.ask(1)
    b.finish(b.tick_one())
    assert b.tick(0.005) == []


def test_rows_of_one_client_lie_side_by_side_in_the_order_they_came() -> None:
    b = broker()
    groups = [b.ask(1, client=client) for client in (b"2", b"1", b"2", b"1")]
    batch = b.tick_one()
    assert [part.group for part in batch.parts] == [groups[i] for i in (1, 3, 0, 2)]


def test_lanes_do_not_mix() -> None:
    signature = make_signature((("x", "float32", (None, None)),))
    b = VirtualBroker(make_model())
    b.start_workers(signature, workers=3)
    for length in (1, 2, 1):
        b.ask(1, target=make_target(("x", "float32", (None, length))), frames=[bytes(4 * length)])
    assert sizes(b.tick()) == [2, 1]


# Which worker gets it


def test_batches_go_to_idle_workers_one_each() -> None:
    b = broker(workers=3)
    for _ in range(2):
        b.ask(*[1] * 4)
    assert [batch.worker_id for batch in b.tick()] == [0, 1]
    b.ask(1)
    assert [batch.worker_id for batch in b.tick()] == [2]


def test_a_full_batch_goes_one_ahead_and_a_partial_one_waits() -> None:
    b = broker()
    b.ask(*[1] * 9)
    first, ahead = b.tick()
    assert (first.rows, ahead.rows) == (4, 4)
    assert b.tick(1.0) == []
    # Nothing that would wake the loop in vain: only an answer helps.
    assert b.state.next_wakeup() == float("inf")
    b.finish(first)
    assert b.tick() == []
    b.finish(ahead)
    assert sizes(b.tick()) == [1]


def test_a_worker_runs_as_many_batches_as_it_says() -> None:
    b = broker(concurrent_batches=2)
    assert [b.ask(1) and sizes(b.tick()) for _ in range(3)] == [[1], [1], []]
    b.ask(*[1] * 3)
    assert sizes(b.tick()) == [4]
    b.ask(*[1] * 4)
    assert b.tick() == []


def test_num_batch_threads_bounds_a_model_over_all_workers() -> None:
    b = broker(workers=4, num_batch_threads=2)
    b.ask(*[1] * 16)
    first, _ = b.tick()
    assert b.tick(1.0) == []
    assert b.state.next_wakeup() == float("inf")
    b.finish(first)
    assert sizes(b.tick()) == [4]


def test_a_worker_that_does_not_serve_the_model_gets_none_of_it() -> None:
    b = VirtualBroker(make_model("m"), make_model("n"))
    b.start_worker(make_report(name="n"))
    assert b.start_worker(make_report(name="m")) == 1
    b.ask(1)
    assert b.tick_one().worker_id == 1


def test_a_stateful_model_keeps_to_one_worker() -> None:
    b = VirtualBroker(make_model())
    for _ in range(3):
        b.start_worker(make_report(stateful=True))
    b.ask(*[1] * 16)
    first, ahead = b.tick()
    assert first.worker_id == ahead.worker_id == 0
    b.lose(0)
    assert [batch.worker_id for batch in b.tick()] == [1, 1]


def test_a_stateful_model_keeps_to_its_worker_when_a_lower_one_comes_up() -> None:
    b = VirtualBroker(make_model())
    b.start_worker(make_report(stateful=True), worker_id=1)
    b.ask(1)
    running = b.tick_one()
    b.start_worker(make_report(stateful=True), worker_id=0)
    b.finish(running)
    b.ask(1)
    assert b.tick_one().worker_id == 1


# Which lane goes first


def lane_order(b: VirtualBroker, *asks: tuple[int, float | None]) -> list[int]:
    """The order in which single requests of (priority, timeout) leave, one worker busy first."""
    b.ask(1)
    running = b.tick_one()
    order = {}
    for i, (priority, timeout_s) in enumerate(asks):
        order[b.ask(1, target=make_target(priority=priority), timeout_s=timeout_s)] = i
    left = []
    for _ in asks:
        b.finish(running)
        running = b.tick_one(0.001)
        left.append(order[running.parts[0].group])
    return left


def test_higher_priorities_go_first() -> None:
    assert lane_order(broker(), (0, None), (-5, 1.0), (7, None), (3, 9.0)) == [2, 3, 0, 1]


def test_of_one_priority_the_earliest_deadline_goes_first_then_who_came_first() -> None:
    b = VirtualBroker(*(make_model(name) for name in "mabcd"))
    b.start_worker(*(make_report(name=name) for name in "mabcd"))
    b.ask(1)
    running = b.tick_one()
    for name, timeout_s in (("a", None), ("b", 0.9), ("c", 0.5), ("d", None)):
        b.ask(1, target=make_target(model=name), timeout_s=timeout_s)
        b.now += 0.001
    order = []
    for _ in range(4):
        b.finish(running)
        running = b.tick_one()
        order.append(running.lane.model.name)
    assert order == ["c", "b", "a", "d"]


def test_a_lane_that_cannot_go_does_not_hold_others_up() -> None:
    b = VirtualBroker(make_model("m", num_batch_threads=1), make_model("n"))
    for _ in range(2):
        b.start_worker(make_report(name="m"), make_report(name="n"))
    b.ask(1, target=make_target(priority=9))
    b.tick_one()
    b.ask(1, target=make_target(priority=9))
    b.ask(1, target=make_target(model="n"))
    assert b.tick_one().lane.model.name == "n"


# Large requests


def test_a_large_request_is_spread_over_batches_and_answered_once() -> None:
    b = broker(workers=3)
    before, large, after = b.ask(3), b.ask(9), b.ask(1)
    batches = b.tick()
    assert [[(part.group, part.rows) for part in batch.parts] for batch in batches] == [
        [(before, 3), (large, 1)],
        [(large, 4)],
        [(large, 4)],
    ]
    for batch in reversed(batches):
        assert b.answers[large] == [None]
        b.finish(batch)
    assert b.answers[large] == ["OK"]
    b.finish(b.tick_one())
    assert b.answers[after] == ["OK"]


def test_with_splitting_off_a_message_of_many_requests_still_goes() -> None:
    b = broker(enable_large_batch_splitting=False)
    with pytest.raises(InvalidArgument, match="enable_large_batch_splitting is off"):
        b.ask(5)
    group = b.ask(4, 3, 1)
    first, second = b.tick()
    assert [part.count for part in first.parts + second.parts] == [1, 2]
    b.finish(second)
    assert b.answers[group] == [None, "OK", "OK"]


def test_batches_are_padded_to_allowed_sizes() -> None:
    b = broker(workers=3, max_batch_size=8, allowed_batch_sizes=(2, 8))
    b.ask(*[1] * 8)
    assert [(batch.rows, batch.layout.padded_rows) for batch in b.tick()] == [(8, 8)]
    b.ask(1, 1, 1)
    assert [(batch.rows, batch.layout.padded_rows) for batch in b.tick()] == [(3, 8)]
    b.ask(1)
    assert [(batch.rows, batch.layout.padded_rows) for batch in b.tick()] == [(1, 2)]


def test_requests_that_are_never_batched_run_alone() -> None:
    b = broker(workers=2, enable_batching=False)
    target = make_target(("x", "float32", (3, 16)))
    for _ in range(3):
        b.ask(3, target=target, frames=[bytes(3 * 64)], whole=True)
    first, second, third = b.tick()
    assert sizes([first, second, third]) == [1, 1, 1]
    assert [batch.worker_id for batch in (first, second, third)] == [0, 1, 0]
    b.finish(first)
    assert b.state.catalog.models["m", 1].batches == 3


# Counters that status shows


def test_a_model_counts_what_it_served() -> None:
    b = broker()
    b.ask(1, 2)
    b.ask(1)
    model = b.catalog.models["m", 1]
    assert (model.requests, model.queued_rows) == (3, 4)
    b.finish(b.tick_one())
    b.ask(1)
    b.finish(b.tick_one())
    assert (model.requests, model.batches, model.queued_rows) == (4, 2, 0)
    assert model.batch_rows == {4: 1, 1: 1}
    assert b.state.workers[0].batches_done == 2


# Answers that the client should never see twice


def test_a_message_id_in_use_is_refused_and_the_first_message_goes_on() -> None:
    b = broker()
    first = b.ask(1, message_id=5)
    again = b.ask(1, 1, message_id=5)
    assert b.answers[again] == ["INVALID_ARGUMENT"] * 2
    assert "message id 5 is in use" in b.messages[-1]
    # Another client's numbers are its own; an answered one may be used again.
    other = b.ask(1, message_id=5, client=b"other")
    b.finish(b.tick_one())
    later = b.ask(1, message_id=5)
    b.finish(b.tick_one())
    assert b.answers[first] == b.answers[other] == b.answers[later] == ["OK"]


def test_a_refusal_names_runs_of_requests() -> None:
    b = broker()
    group = b.ask(*[1] * 6)
    b.cancel(group, 2, 1)
    (refuse,) = b.handle(
        events.RequestsCancelled(group.client, [(group.message_id, 1, 4)]),
    )
    assert isinstance(refuse, Refuse)
    assert refuse.requests == [(1, 1), (3, 2)]
