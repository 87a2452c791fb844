"""The broker in virtual time when requests are late or given up, queues full, workers dead.

``VirtualBroker`` checks that every request is answered once; these tests say what the answers are.
"""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from typing import Any

import pytest
from support.broker_builders import (
    ROW_NBYTES,
    make_model,
    make_target,
)
from support.virtual_broker import LEFT, VirtualBroker

from batchyard.broker import events
from batchyard.broker.lane import Lane
from batchyard.broker.queue import Part
from batchyard.wire.errors import InvalidArgument, Unavailable


def broker(workers: int = 1, queue_nbytes_max: int = 1 << 30, **parameters: Any) -> VirtualBroker:
    made = VirtualBroker(make_model(**parameters), queue_nbytes_max=queue_nbytes_max)
    for _ in range(workers):
        made.start_worker()
    return made


# Deadlines


def test_a_row_past_its_deadline_is_answered_and_never_dispatched() -> None:
    b = broker()
    b.ask(1)
    running = b.tick_one()
    late, patient = b.ask(1, timeout_s=0.5), b.ask(1)
    assert b.state.next_wakeup() == b.now + 0.5
    assert b.tick(0.5) == []
    assert b.answers[late] == ["DEADLINE_EXCEEDED"]
    assert "deadline passed" in b.messages[-1]
    b.finish(running)
    assert [part.group for part in b.tick_one().parts] == [patient]


def test_a_request_that_is_too_late_on_arrival_costs_no_worker() -> None:
    b = broker()
    groups = [b.ask(1, timeout_s=timeout_s) for timeout_s in (0.0, -1.0)]
    assert b.tick() == []
    assert [b.answers[group] for group in groups] == [["DEADLINE_EXCEEDED"]] * 2


def test_each_request_of_a_message_expires_by_itself() -> None:
    b = broker(max_batch_size=1)
    b.ask(1, 1)
    one, ahead = b.tick()
    group = b.ask(1, 1, 1, timeout_s=[0.2, None, 0.1])
    b.tick(0.1)
    assert b.answers[group] == [None, None, "DEADLINE_EXCEEDED"]
    assert b.state.next_wakeup() == pytest.approx(b.now + 0.1)
    b.tick(0.11)
    assert b.answers[group] == ["DEADLINE_EXCEEDED", None, "DEADLINE_EXCEEDED"]
    b.finish(one)
    b.finish(ahead)
    b.finish(b.tick_one())
    assert b.answers[group] == ["DEADLINE_EXCEEDED", "OK", "DEADLINE_EXCEEDED"]


def test_a_deadline_that_passes_while_the_batch_runs_does_not_take_the_answer_away() -> None:
    b = broker()
    group = b.ask(1, timeout_s=0.5)
    batch = b.tick_one()
    b.tick(1.0)
    assert b.answers[group] == [None]
    b.finish(batch)
    assert b.answers[group] == ["OK"]


def test_what_is_left_of_a_large_request_goes_with_its_deadline() -> None:
    b = broker()
    group = b.ask(20, timeout_s=0.5)
    first, second = b.tick()
    b.tick(0.5)
    assert b.answers[group] == ["DEADLINE_EXCEEDED"]
    b.finish(first)
    b.fail(second)
    assert b.tick() == []
    assert b.waiting_rows == 0


def test_an_answered_request_holds_no_memory_until_its_deadline() -> None:
    b = broker()
    frame = memoryview(bytes(ROW_NBYTES))
    b.ask(1, timeout_s=3600.0, frames=[frame])
    b.finish(b.tick_one())
    held = weakref.ref(frame)
    del frame
    b.forget_answered()
    gc.collect()
    assert held() is None


# Queues are bounded


def test_beyond_max_enqueued_batches_requests_are_refused_at_once() -> None:
    b = broker(max_enqueued_batches=2)
    b.ask(*[1] * 8)
    b.tick()  # Two batches are on the worker and wait no more.
    waiting = b.ask(*[1] * 8)
    refused = b.ask(1)
    assert b.answers[refused] == ["UNAVAILABLE"]
    for words in ("'m'", "queue is full", "8 rows may wait", "max_enqueued_batches = 2"):
        assert words in b.messages[-1]
    assert b.answers[waiting] == [None] * 8
    # Another lane has a queue of its own.
    assert b.answers[b.ask(1, target=make_target(priority=1))] == [None]


def test_of_a_message_what_fits_into_the_queue_is_taken() -> None:
    b = broker(max_enqueued_batches=1)
    b.ask(*[1] * 4)
    b.tick()
    b.ask(1)
    message = b.ask(*[1] * 5)
    assert b.answers[message] == [None, None, None, "UNAVAILABLE", "UNAVAILABLE"]
    assert b.waiting_rows == 4


def test_a_request_larger_than_the_queue_is_the_callers_mistake() -> None:
    b = broker(max_enqueued_batches=2)
    assert b.answers[b.ask(9)] == ["INVALID_ARGUMENT"]
    assert "the request has 9 rows, at most 8 rows may wait" in b.messages[-1]
    assert b.answers[b.ask(8)] == [None]


def test_one_message_of_tensors_larger_than_the_bound_may_wait_alone() -> None:
    b = broker(queue_nbytes_max=ROW_NBYTES)
    assert b.answers[b.ask(3)] == [None]
    assert b.answers[b.ask(1)] == ["RESOURCE_EXHAUSTED"]


def test_tensors_that_wait_are_bounded_over_all_lanes() -> None:
    b = broker(queue_nbytes_max=3 * ROW_NBYTES)
    b.ask(2)
    assert b.answers[b.ask(2, target=make_target(priority=1))] == ["RESOURCE_EXHAUSTED"]
    for words in ("128 bytes", "of 192", "max_queue_mb"):
        assert words in b.messages[-1]
    assert b.answers[b.ask(1, target=make_target(priority=1))] == [None]
    b.tick_one()
    assert b.state.queue_nbytes == 2 * ROW_NBYTES


# Requests given up


def test_cancelled_requests_leave_the_queue() -> None:
    b = broker()
    group, other = b.ask(1, 9, 1), b.ask(1)
    b.cancel(group, 1, 1)
    assert b.answers[group] == [None, "CANCELLED", None]
    assert [(part.group, part.rows) for part in b.tick_one().parts] == [
        (group, 1),
        (group, 1),
        (other, 1),
    ]


def test_a_cancelled_request_on_a_worker_is_answered_and_its_outputs_go_to_nobody() -> None:
    b = broker()
    group = b.ask(1, 1, 1)
    batch = b.tick_one()
    b.cancel(group, 1, 1)
    deliver = b.finish(batch)
    assert b.answers[group] == ["OK", "CANCELLED", "OK"]
    assert [(part.first, part.rows, row) for part, row in deliver.parts] == [(0, 1, 0), (2, 1, 2)]


def test_a_whole_message_can_be_cancelled_at_any_stage() -> None:
    b = broker()
    group = b.ask(3, 9)
    first, _ = b.tick()
    b.cancel(group)
    assert b.answers[group] == ["CANCELLED"] * 2
    assert b.state.is_idle
    assert b.finish(first).parts == []
    b.cancel(group)


def test_cancelling_what_is_not_there_does_nothing() -> None:
    b = broker()
    group = b.ask(1, 1)
    segments = [(group.message_id + 1, 0, 0), (group.message_id, 2, 5), (group.message_id, 9, 0)]
    assert b.handle(events.RequestsCancelled(b"c", segments)) == []
    assert b.handle(events.RequestsCancelled(b"other", [(group.message_id, 0, 0)])) == []
    b.cancel(group, 1, 1 << 40)
    assert b.answers[group] == [None, "CANCELLED"]


def test_a_client_that_left_gets_nothing_and_blocks_nobody() -> None:
    b = broker(max_batch_size=2)
    gone, stays = b.ask(1, client=b"gone"), b.ask(1, client=b"stays")
    waits = b.ask(1, 9, client=b"gone")
    batch, _ = b.tick()
    b.leave(b"gone")
    assert b.answers[gone] == [LEFT]
    deliver = b.finish(batch)
    assert [part.group for part, _ in deliver.parts] == [stays]
    assert b.answers[waits] == [LEFT, LEFT]
    assert b.state.is_idle
    assert b.waiting_rows == 0


# Workers that fail


def test_a_batch_that_raised_answers_all_its_requests_where_none_may_run_again() -> None:
    b = broker(retry=False)
    group, other = b.ask(1, 1), b.ask(1)
    b.fail(b.tick_one(), InvalidArgument("bad row"))
    assert b.answers[group] + b.answers[other] == ["INVALID_ARGUMENT"] * 3
    assert b.state.allocator.used_nbytes == 0


def test_a_large_request_fails_as_a_whole_with_its_first_bad_piece() -> None:
    b = broker()
    group = b.ask(12)
    first, second = b.tick()
    b.finish(first)
    b.fail(second)
    assert b.answers[group] == ["INTERNAL"]
    assert b.waiting_rows == 0
    assert b.tick() == []


def test_requests_on_a_lost_worker_wait_until_it_is_reaped() -> None:
    b = broker(workers=2, max_batch_size=1, retry=False)
    lost, kept, waits = b.ask(1), b.ask(1), b.ask(1, 1, 1)
    b.tick()
    b.lose(0)
    assert b.answers[lost] == b.answers[kept] == [None]
    b.reap(0, why="signal 9")
    assert b.answers[lost] == ["UNAVAILABLE"]
    assert "the worker died while it ran this (signal 9); it is not tried again" in b.messages[-1]
    # The one that was ahead in its queue did not run.
    assert b.answers[waits] == [None] * 3
    assert b.answers[kept] == [None]


def test_when_no_worker_is_left_and_none_comes_back_what_waits_is_answered() -> None:
    b = broker(max_batch_size=1, batch_timeout_micros=10_000)
    group = b.ask(1, 1, 3)
    other = b.ask(1, target=make_target(priority=1), client=b"other")
    b.tick()
    b.lose(0)
    assert b.answers[group] == [None] * 3
    b.reap(0)
    assert b.answers[group] == ["UNAVAILABLE"] * 3
    assert b.answers[other] == ["UNAVAILABLE"]
    assert "no worker is left" in b.messages[-1]
    with pytest.raises(Unavailable, match="has no worker left"):
        b.ask(1)
    b.start_worker()
    again = b.ask(1)
    b.finish(b.tick_one(0.02))
    assert b.answers[again] == ["OK"]


def test_what_a_lost_worker_says_later_is_not_heard() -> None:
    b = broker()
    b.ask(1)
    batch = b.tick_one()
    b.lose(0)
    assert b.handle(events.BatchFinished(batch.id, 0, False)) == []
    assert b.handle(events.BatchFailed(batch.id, InvalidArgument("late"), False)) == []
    # Nor does anything but its end give the block back.
    assert b.handle(events.InputsReleased(batch.id)) == []
    assert b.state.allocator.used_nbytes == batch.block.nbytes
    b.reap(0)
    assert b.handle(events.BatchFinished(batch.id, 0, False)) == []
    assert b.handle(events.InputsReleased(batch.id)) == []
    assert b.handle(events.BatchDelivered(batch.id)) == []


def test_a_worker_that_never_was_ready_may_be_lost() -> None:
    b = broker()
    group = b.ask(1)
    b.lose(7)
    b.reap(7)
    b.finish(b.tick_one())
    assert b.answers[group] == ["OK"]


# The end


def test_draining_takes_no_more_and_finishes_what_it_took() -> None:
    b = broker(batch_timeout_micros=10_000)
    running, waiting = b.ask(*[1] * 4), b.ask(1)
    batch = b.tick_one()
    b.handle(events.DrainStarted())
    refused = b.ask(1)
    assert b.answers[refused] == ["UNAVAILABLE"]
    assert "shutting down" in b.messages[-1]
    assert not b.state.is_idle
    b.finish(batch)
    b.finish(b.tick_one(0.02))
    assert b.answers[running] + b.answers[waiting] == ["OK"] * 5
    assert b.state.is_idle


@pytest.mark.parametrize("leaves", [True, False], ids=["left", "cancelled"])
def test_many_messages_given_up_at_once_cost_one_look_at_each_lane(
    leaves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: Counter[Lane] = Counter()
    remove_dropped = Lane.remove_dropped

    def counted(lane: Lane) -> list[Part]:
        looks[lane] += 1
        return remove_dropped(lane)

    monkeypatch.setattr(Lane, "remove_dropped", counted)
    b = broker(workers=0)
    b.start_worker()
    targets = [make_target(priority=priority) for priority in (0, 1)]
    groups = [b.ask(1, target=target) for _ in range(50) for target in targets]
    other = b.ask(1, client=b"other")
    if leaves:
        b.leave(b"c")
    else:
        segments = [(group.message_id, 0, 0) for group in groups]
        b.handle(events.RequestsCancelled(b"c", segments))
    assert {answer for group in groups for answer in b.answers[group]} == {
        LEFT if leaves else "CANCELLED"
    }
    assert looks == {group.lane: 1 for group in groups}
    assert len(looks) == 2
    assert [part.group for part in b.tick_one().parts] == [other]
