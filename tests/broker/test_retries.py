"""Batches that raise, in virtual time: which requests run again, with whom, and how often."""

from __future__ import annotations

from typing import Any

import pytest
from support.broker_builders import ROW_NBYTES, make_model, make_report, make_target
from support.poison import requests_of, run_all
from support.virtual_arena import make_region
from support.virtual_broker import VirtualBroker

from batchyard.broker import events
from batchyard.broker.events import Batch
from batchyard.wire import errors
from batchyard.wire.errors import BatchyardError, InvalidArgument, ResourceExhausted
from batchyard.wire.protocol import RegionPlaces

BAD = InvalidArgument("bad row")
FULL = ResourceExhausted("OOM when allocating")


def broker(
    workers: int = 1, stateful: bool = False, arena_nbytes: int = 1 << 20, **parameters: Any
) -> VirtualBroker:
    made = VirtualBroker(make_model(**parameters), arena_nbytes=arena_nbytes)
    for _ in range(workers):
        made.start_worker(make_report(stateful=stateful))
    return made


def sizes(batches: list[Batch]) -> list[int]:
    return [batch.rows for batch in batches]


# Who raised is found


def test_of_64_requests_one_gets_its_error_and_63_their_outputs() -> None:
    b = broker(max_batch_size=64)
    group = b.ask(*[1] * 64)
    ran = run_all(b, {(group, 37): BAD})
    assert b.answers[group] == ["OK"] * 37 + ["INVALID_ARGUMENT"] + ["OK"] * 26
    assert b.messages == ["bad row"]
    # Two halves each time, of which one comes to nothing.
    assert sorted(sizes(ran), reverse=True) == [64, 32, 32, 16, 16, 8, 8, 4, 4, 2, 2, 1, 1]


@pytest.mark.parametrize("second", [1, 31, 63])
def test_each_of_two_that_raise_gets_its_own_error(second: int) -> None:
    b = broker(max_batch_size=64)
    group = b.ask(*[1] * 64)
    run_all(b, {(group, 0): BAD, (group, second): errors.Aborted("not now")})
    expected = ["INVALID_ARGUMENT"] + ["OK"] * 63
    expected[second] = "ABORTED"
    assert b.answers[group] == expected
    assert sorted(b.messages) == ["bad row", "not now"]


@pytest.mark.parametrize("requests", [2, 3, 64, 100])
def test_when_all_raise_there_are_not_twice_as_many_runs_as_requests(requests: int) -> None:
    b = broker(max_batch_size=128)
    group = b.ask(*[1] * requests)
    ran = run_all(b, {(group, i): InvalidArgument(f"row {i}") for i in range(requests)})
    assert b.answers[group] == ["INVALID_ARGUMENT"] * requests
    assert sorted(b.messages) == sorted(f"row {i}" for i in range(requests))
    assert len(ran) == 2 * requests - 1


def test_requests_of_several_clients_and_rows_are_told_apart() -> None:
    b = broker(max_batch_size=16)
    groups = [b.ask(3, 1, client=b"1"), b.ask(2, client=b"2"), b.ask(1, 4, 2, client=b"3")]
    run_all(b, {(groups[0], 1): BAD, (groups[2], 1): BAD})
    assert [b.answers[group] for group in groups] == [
        ["OK", "INVALID_ARGUMENT"],
        ["OK"],
        ["OK", "INVALID_ARGUMENT", "OK"],
    ]


def test_a_piece_that_raises_is_the_end_of_its_large_request_only() -> None:
    b = broker(workers=3)
    before, large, after = b.ask(3), b.ask(9), b.ask(1)
    run_all(b, {(large, 0): BAD})
    assert b.answers[large] == ["INVALID_ARGUMENT"]
    assert b.answers[before] == b.answers[after] == ["OK"]
    assert b.messages == ["bad row"]


def test_one_that_raises_alone_is_not_tried_again() -> None:
    b = broker()
    group = b.ask(1)
    assert len(run_all(b, {(group, 0): BAD})) == 1
    assert b.answers[group] == ["INVALID_ARGUMENT"]


def test_what_raised_once_for_no_reason_of_its_own_is_answered() -> None:
    b = broker()
    group = b.ask(1, 1)
    b.fail(b.tick_one(), errors.Internal("a hiccup"))
    assert sizes(run_all(b)) == [1, 1]
    assert b.answers[group] == ["OK", "OK"]


# What is not tried again


@pytest.mark.parametrize("made", [{"retry": False}, {"stateful": True}])
def test_where_nothing_may_run_twice_the_whole_batch_fails(made: dict[str, Any]) -> None:
    b = broker(**made)
    group, other = b.ask(1, 1), b.ask(1, client=b"other")
    assert len(run_all(b, {(group, 1): BAD})) == 1
    assert b.answers[group] + b.answers[other] == ["INVALID_ARGUMENT"] * 3


def test_retry_may_be_switched_on_for_a_model_that_writes_its_variables() -> None:
    b = broker(stateful=True, retry=True)
    group = b.ask(1, 1)
    run_all(b, {(group, 1): BAD})
    assert b.answers[group] == ["OK", "INVALID_ARGUMENT"]


@pytest.mark.parametrize(
    "error",
    [errors.Unimplemented, errors.NotFound, errors.Unavailable, errors.DeadlineExceeded],
)
def test_an_error_that_no_row_is_the_reason_of_is_everyones(error: type[BatchyardError]) -> None:
    b = broker()
    group = b.ask(1, 1, 1)
    b.fail(b.tick_one(), error("no kernel"))
    assert b.answers[group] == [error("").code] * 3
    assert b.tick() == []


# Too little memory in the worker


def test_rows_of_one_request_that_take_too_much_memory_run_in_pieces() -> None:
    b = broker(max_batch_size=8)
    group, other = b.ask(8), b.ask(1)
    b.fail(b.tick_one(), FULL)
    head, tail = b.tick()
    assert sizes([head, tail]) == [4, 4]
    b.finish(head)
    assert b.answers[group] == [None]
    b.fail(tail, FULL)
    assert sizes(run_all(b))[:2] == [2, 2]
    assert b.answers[group] == b.answers[other] == ["OK"]


def test_one_row_that_takes_too_much_memory_is_the_error_of_its_request() -> None:
    b = broker(max_batch_size=4)
    group, other = b.ask(3), b.ask(1, client=b"other")
    ran = run_all(b, {(group, 0): FULL})
    assert b.answers[group] == ["RESOURCE_EXHAUSTED"]
    assert b.answers[other] == ["OK"]
    assert b.messages == ["OOM when allocating"]
    assert sizes(ran)[0] == 4


def test_with_splitting_off_a_request_stays_whole() -> None:
    b = broker(enable_large_batch_splitting=False)
    group = b.ask(4)
    b.fail(b.tick_one(), FULL)
    assert b.answers[group] == ["RESOURCE_EXHAUSTED"]


def test_what_is_never_batched_is_not_cut() -> None:
    b = broker(enable_batching=False)
    group = b.ask(3, target=make_target(("x", "float32", (3, 16))), frames=[bytes(192)], whole=True)
    b.fail(b.tick_one(), FULL)
    assert b.answers[group] == ["RESOURCE_EXHAUSTED"]


def test_other_errors_do_not_cut_a_request() -> None:
    b = broker()
    group = b.ask(4)
    b.fail(b.tick_one(), BAD)
    assert b.answers[group] == ["INVALID_ARGUMENT"]


# With whom, and when


def test_halves_never_meet_new_rows() -> None:
    b = broker(max_batch_size=8, batch_timeout_micros=5000)
    group = b.ask(*[1] * 8)
    first = b.tick_one()
    new = b.ask(*[1] * 3)
    b.fail(first, BAD)
    for batch in run_all(b, {(group, 5): BAD}):
        assert {group for group, _ in requests_of(batch)} in ({group}, {new})
    assert b.answers[new] == ["OK"] * 3
    assert b.answers[group].count("OK") == 7


def test_halves_need_not_be_ripe_and_go_before_new_rows() -> None:
    b = broker(workers=3, batch_timeout_micros=1_000_000)
    group = b.ask(*[1] * 4)
    first = b.tick_one()
    b.ask(*[1] * 4, target=make_target(priority=9))
    b.fail(first, BAD)
    assert [batch.parts[0].group for batch in b.tick()[:2]] == [group, group]


def test_halves_run_at_the_same_time_on_several_workers() -> None:
    b = broker(workers=2, max_batch_size=8)
    b.ask(*[1] * 8)
    b.fail(b.tick_one(), BAD)
    assert [(batch.rows, batch.worker_id) for batch in b.tick()] == [(4, 0), (4, 1)]


@pytest.mark.parametrize("threads", [1, 2])
def test_num_batch_threads_bounds_what_runs_again_too(threads: int) -> None:
    b = broker(workers=3, num_batch_threads=threads)
    b.ask(*[1] * 4)
    b.fail(b.tick_one(), BAD)
    assert len(b.tick()) == threads
    run_all(b)
    assert b.is_all_answered


def test_under_full_load_halves_get_their_turn() -> None:
    b = broker()
    group = b.ask(*[1] * 4)
    first = b.tick_one()
    b.ask(*[1] * 8)
    ahead = b.tick_one()
    b.fail(first, BAD)
    batch = ahead
    for _ in range(8):
        b.ask(*[1] * 4)
        b.tick()
        b.finish(batch)
        b.tick()
        batch = b.running[min(b.running)]
    assert b.answers[group] == ["OK"] * 4


def test_halves_are_padded_as_any_batch_is() -> None:
    b = broker(allowed_batch_sizes=(3, 4))
    b.ask(*[1] * 4)
    b.fail(b.tick_one(), BAD)
    assert [(batch.rows, batch.layout.padded_rows) for batch in b.tick()] == [(2, 3)] * 2


def test_halves_wait_for_memory_and_nothing_overtakes_them() -> None:
    b = broker(workers=3, arena_nbytes=6 * ROW_NBYTES)
    group = b.ask(*[1] * 4)
    batch = b.tick_one()
    b.fail(batch, BAD, kept=True)
    small = b.ask(1)
    assert b.tick() == []
    assert b.state.next_wakeup() == float("inf")
    b.release(batch)
    first, *_ = b.tick()
    assert first.parts[0].group is group
    run_all(b)
    assert b.answers[small] == ["OK"]


def test_what_failed_before_it_was_sent_is_tried_again_at_once() -> None:
    """The loop says that a batch failed while it hands it over: nothing else may happen then."""
    b = broker()
    b.ask(1, 1)
    b.fail(b.tick_one(), FULL)
    assert b.state.next_wakeup() <= b.now
    assert not b.state.is_quiet


def test_what_waits_for_a_worker_to_run_again_wakes_nobody() -> None:
    b = broker()
    b.ask(*[1] * 8)
    first, _ = b.tick()
    b.fail(first, BAD)
    # One half is ahead in the worker's queue, as a full batch would be.
    assert sizes(b.tick()) == [2]
    assert b.tick() == []
    assert b.state.next_wakeup() == float("inf")


@pytest.mark.parametrize("gone", ["cancelled", "left"])
def test_what_is_given_up_before_it_runs_again_wakes_nobody(gone: str) -> None:
    b = broker()
    group = b.ask(1, 1)
    b.fail(b.tick_one(), BAD)
    if gone == "left":
        b.leave(b"c")
    else:
        b.cancel(group)
    assert b.state.is_quiet
    assert b.state.next_wakeup() == float("inf")


# Given up or late meanwhile


def test_requests_that_are_given_up_do_not_run_again() -> None:
    b = broker()
    group, left = b.ask(1, 1, 1), b.ask(1, client=b"left")
    batch = b.tick_one()
    b.cancel(group, 1, 1)
    b.leave(b"left")
    b.fail(batch, BAD)
    ran = run_all(b)
    assert [requests_of(batch) for batch in ran] == [[(group, 0)], [(group, 2)]]
    assert b.answers[group] == ["OK", "CANCELLED", "OK"]
    assert b.answers[left] == ["LEFT"]


def test_requests_that_are_given_up_while_they_wait_again_leave() -> None:
    b = broker()
    group = b.ask(*[1] * 3)
    b.ask(1, client=b"other")
    first = b.tick_one()
    b.ask(*[1] * 4, client=b"busy")
    b.tick()
    # Before the next turn.
    b.fail(first, BAD)
    assert (b.state.queue_nbytes, b.waiting_rows) == (4 * ROW_NBYTES, 4)
    b.cancel(group, 0, 2)
    assert (b.state.queue_nbytes, b.waiting_rows) == (4 * ROW_NBYTES, 2)
    b.leave(b"other")
    assert (b.state.queue_nbytes, b.waiting_rows) == (3 * ROW_NBYTES, 1)
    run_all(b)
    assert b.answers[group] == ["CANCELLED", "CANCELLED", "OK"]


def test_a_deadline_that_passed_while_the_batch_ran_is_kept_when_it_raised() -> None:
    b = broker()
    group = b.ask(1, 1, timeout_s=[0.5, None])
    batch = b.tick_one()
    b.tick(1.0)
    b.fail(batch, BAD)
    assert b.answers[group] == ["DEADLINE_EXCEEDED", None]
    run_all(b)
    assert b.answers[group] == ["DEADLINE_EXCEEDED", "OK"]


def test_a_deadline_may_pass_while_a_request_waits_to_run_again() -> None:
    b = broker(num_batch_threads=1)
    group = b.ask(1, 1, 1, 1, timeout_s=[0.5, None, 0.8, None])
    first = b.tick_one()
    b.fail(first, BAD)
    # The second half waits; the first half's request is late when it is on the worker.
    b.tick()
    b.tick(0.5)
    assert b.answers[group] == [None] * 4
    assert b.state.next_wakeup() == pytest.approx(b.now + 0.3)
    b.tick(0.31)
    assert b.answers[group] == [None, None, "DEADLINE_EXCEEDED", None]
    run_all(b)
    assert b.answers[group] == ["OK", "OK", "DEADLINE_EXCEEDED", "OK"]


def test_while_it_drains_what_was_accepted_runs_again_too() -> None:
    b = broker()
    group = b.ask(1, 1)
    batch = b.tick_one()
    b.handle(events.DrainStarted())
    b.fail(batch, BAD)
    assert not b.state.is_idle
    run_all(b, {(group, 0): BAD})
    assert b.answers[group] == ["INVALID_ARGUMENT", "OK"]
    assert b.state.is_idle


def test_a_refusal_waits_for_batches_that_may_write_to_the_reply_space() -> None:
    b = broker(workers=2, max_batch_size=2)
    places = RegionPlaces([[0, 64]], [(4096, 64), (4160, 64)])
    group = b.ask(1, 1, frames=[], region=make_region(), places=places)
    b.fail(b.tick_one(), BAD)
    first, second = b.tick()
    b.finish(first, replied=True)
    b.fail(second, BAD)
    assert b.answers[group] == ["OK", "INVALID_ARGUMENT"]
    assert b.is_all_answered


def test_queues_are_counted_while_batches_split() -> None:
    b = broker(max_batch_size=8)
    group = b.ask(*[1] * 8)
    batch = b.tick_one()
    model = group.lane.model
    assert (b.state.queue_nbytes, model.queued_rows) == (0, 0)
    b.fail(batch, BAD)
    assert (b.state.queue_nbytes, model.queued_rows) == (8 * ROW_NBYTES, 8)
    first, second = b.tick()
    assert (b.state.queue_nbytes, model.queued_rows) == (0, 0)
    b.fail(first, BAD)
    assert (b.state.queue_nbytes, model.queued_rows) == (8 * ROW_NBYTES, 4)
    b.finish(second)
    for quarter in b.tick():
        b.finish(quarter)
    assert (b.state.queue_nbytes, model.queued_rows) == (0, 0)
    assert (model.requests, model.batches) == (8, 5)
