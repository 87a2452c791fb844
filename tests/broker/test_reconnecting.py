"""Messages that come again to the same broker, by another connection, in virtual time."""

from __future__ import annotations

from typing import Any

import pytest
from support.broker_builders import (
    ROW_NBYTES,
    make_model,
    make_predict,
    make_target,
)
from support.poison import run_all
from support.virtual_arena import make_region
from support.virtual_broker import VirtualBroker

from batchyard.broker import events
from batchyard.broker.admission import admit
from batchyard.wire.errors import InvalidArgument
from batchyard.wire.protocol import RegionPlaces

ID, OTHER_ID = 1 << 50, 1 << 51
BAD = InvalidArgument("bad row")


def broker(
    workers: int = 1,
    concurrent_batches: int = 1,
    queue_nbytes_max: int = 1 << 30,
    **parameters: Any,
) -> VirtualBroker:
    made = VirtualBroker(make_model(**parameters), queue_nbytes_max=queue_nbytes_max)
    for _ in range(workers):
        made.start_worker(concurrent_batches=concurrent_batches)
    return made


def test_a_message_that_comes_by_another_connection_takes_over_what_runs() -> None:
    b = broker(max_batch_size=2)
    group = b.ask(*[1] * 5, message_id=ID)
    first, ahead = b.tick()
    again = b.resend(group)
    assert b.state.groups.keys() == {(b"again", ID)}
    assert again.lane.model.queued_rows == 1
    b.finish(first)
    assert b.answers[again] == ["OK", "OK", None, None, None]
    b.fail(ahead, BAD)
    run_all(b, {(again, 2): BAD})
    assert b.answers[again] == ["OK", "OK", "INVALID_ARGUMENT", "OK", "OK"]
    assert b.answers[group] == ["LEFT"] * 5


def test_another_clients_message_of_the_same_number_is_left_alone() -> None:
    b = broker()
    group = b.ask(1, message_id=5)
    batch = b.tick_one()
    other = b.resend(group, client=b"other")
    b.finish(batch)
    assert (b.answers[group], b.answers[other]) == (["OK"], [None])
    b.finish(b.tick_one())
    assert b.answers[other] == ["OK"]


def test_what_was_answered_to_the_lost_connection_runs_again() -> None:
    b = broker(max_batch_size=2)
    group = b.ask(*[1] * 4, message_id=ID)
    first, ahead = b.tick()
    b.finish(first)
    again = b.resend(group)
    b.finish(ahead)
    assert b.answers[again] == [None, None, "OK", "OK"]
    run_all(b)
    assert b.answers[again] == ["OK"] * 4


def test_what_waits_to_run_again_does_so_for_the_new_connection() -> None:
    b = broker()
    group = b.ask(1, 1, message_id=ID)
    b.fail(b.tick_one(), BAD)
    again = b.resend(group)
    run_all(b, {(again, 0): BAD})
    assert b.answers[again] == ["INVALID_ARGUMENT", "OK"]
    assert b.state.queue_nbytes == 0


def test_what_runs_on_a_worker_that_dies_is_the_new_connections() -> None:
    b = broker(workers=2)
    group = b.ask(1, 1, message_id=ID)
    batch = b.tick_one()
    b.lose(batch.worker_id)
    again = b.resend(group)
    assert b.tick() == []
    b.reap(batch.worker_id)
    run_all(b)
    assert b.answers[again] == ["OK", "OK"]


def test_what_others_have_in_the_batch_stays_theirs() -> None:
    b = broker()
    group = b.ask(1, message_id=ID, client=b"1")
    other = b.ask(1, 1, client=b"2")
    batch = b.tick_one()
    again = b.resend(group)
    b.finish(batch)
    assert b.answers[again] + b.answers[other] == ["OK"] * 3


def test_what_may_be_written_to_a_lost_region_runs_again() -> None:
    b = broker(workers=2)
    places = RegionPlaces([[0]], [(4096, 64)])
    b.ask(1, message_id=ID, frames=[], region=make_region(), places=places)
    batch = b.tick_one()
    again = b.ask(1, message_id=ID, client=b"again", resent=True)
    second = b.tick_one()
    b.finish(batch, replied=True)
    assert b.answers[again] == [None]
    b.finish(second)
    assert b.answers[again] == ["OK"]
    assert b.state.is_idle


def test_where_nothing_may_run_twice_what_runs_is_taken_over_too() -> None:
    b = broker(max_batch_size=2, retry=False)
    group = b.ask(*[1] * 4, message_id=ID)
    first, ahead = b.tick()
    b.finish(first)
    again = b.resend(group)
    assert b.answers[again] == ["UNAVAILABLE", "UNAVAILABLE", None, None]
    b.finish(ahead)
    assert b.answers[again] == ["UNAVAILABLE", "UNAVAILABLE", "OK", "OK"]


def test_deadlines_of_the_message_that_was_sent_again_hold() -> None:
    b = broker()
    b.ask(*[1] * 8)
    b.tick()
    group = b.ask(1, message_id=ID, timeout_s=0.5)
    again = b.ask(1, message_id=ID, client=b"again", resent=True, timeout_s=2.0)
    b.tick(1.0)
    assert (b.answers[group], b.answers[again]) == (["LEFT"], [None])
    b.tick(1.0)
    assert b.answers[again] == ["DEADLINE_EXCEEDED"]
    assert b.state.next_wakeup() == float("inf")


@pytest.mark.xfail(strict=True, reason="rows that waited before are in the way of themselves")
def test_a_full_queue_has_room_for_what_waited_there_before() -> None:
    b = broker(max_enqueued_batches=2, queue_nbytes_max=8 * ROW_NBYTES)
    b.ask(1)
    b.tick_one()
    group = b.ask(*[1] * 8, message_id=ID)
    again = b.resend(group)
    run_all(b)
    assert b.answers[again] == ["OK"] * 8


def test_many_messages_sent_again_are_not_each_compared_with_all() -> None:
    """A broker that did would be dead for seconds."""
    looks = 0

    class Id(int):
        def __eq__(self, other: object) -> bool:
            nonlocal looks
            looks += 1
            return int(self) == other

        __hash__ = int.__hash__

    b = broker(max_enqueued_batches=10_000)
    messages = 100
    for i in range(messages):
        b.ask(1, message_id=Id(ID + i))
    predicts = [make_predict(make_target(), 1, None, Id(ID + i)) for i in range(messages)]
    groups = [
        admit(b.catalog, b"again", None, predict, [bytes(ROW_NBYTES)], b.now)
        for predict in predicts
    ]
    looks = 0
    for group in groups:
        b.state.handle(events.RequestsArrived(group, resent=True), b.now)
    assert looks < 20 * messages
