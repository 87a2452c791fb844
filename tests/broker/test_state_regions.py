"""The broker in virtual time when workers write to a client's memory.

With the last answer of a message the client takes its reply space back, so that answer may not
come while a worker runs rows of the message. ``VirtualBroker`` checks this after each event; these
tests say what waits, and what does not.
"""

from __future__ import annotations

from typing import Any

import pytest
from support.broker_builders import ROW_NBYTES, make_model
from support.virtual_arena import make_region
from support.virtual_broker import LEFT, VirtualBroker

from batchyard.broker import events
from batchyard.broker.events import Deliver, Refuse
from batchyard.broker.queue import RequestGroup
from batchyard.wire.protocol import RegionPlaces

REGION = make_region()


def broker(workers: int = 2, **parameters: Any) -> VirtualBroker:
    made = VirtualBroker(make_model(**{"max_batch_size": 1, **parameters}))
    for _ in range(workers):
        made.start_worker()
    return made


def ask(b: VirtualBroker, *rows: int, replies: bool = True, **more: Any) -> RequestGroup:
    """Requests whose rows lie in the region, and whose outputs may go there."""
    offsets = [64 * i for i in range(len(rows))]
    spaces = [(4096 + 64 * i, 64) for i in range(len(rows))] if replies else None
    places = RegionPlaces([offsets], spaces)
    return b.ask(*rows, frames=[], region=REGION, places=places, **more)


def test_what_lies_in_a_region_counts_too() -> None:
    """A short message may name the same rows again and again: the copies are what it costs."""
    b = broker(workers=1)
    b.ask(1)
    ask(b, 1, 1)
    assert b.state.queue_nbytes == 3 * ROW_NBYTES


def test_a_cancelled_request_on_a_worker_is_answered_when_it_comes_back() -> None:
    b = broker()
    group = ask(b, 1)
    batch = b.tick_one()
    b.cancel(group)
    assert b.answers[group] == [None]
    deliver = b.finish(batch, replied=True)
    assert deliver.parts == []
    assert b.answers[group] == ["CANCELLED"]


def test_without_reply_space_nobody_waits() -> None:
    b = broker()
    group = ask(b, 1, replies=False)
    b.tick_one()
    b.cancel(group)
    assert b.answers[group] == ["CANCELLED"]


def test_a_request_that_no_worker_has_is_refused_at_once() -> None:
    b = broker(workers=1)
    b.ask(1)
    b.ask(1)
    b.tick()
    group = ask(b, 1)
    b.cancel(group)
    assert b.answers[group] == ["CANCELLED"]


def test_while_others_of_the_message_wait_for_their_answer_a_refusal_need_not() -> None:
    b = broker(workers=1)
    group = ask(b, 1, 1, timeout_s=[0.5, None])
    other = b.ask(1, client=b"other")
    first, second = b.tick()
    b.tick(1.0)
    b.finish(first)
    b.finish(second)
    b.finish(b.tick_one())
    assert b.answers[group] == ["OK", "OK"]
    assert b.answers[other] == ["OK"]


def test_the_failure_of_one_batch_waits_for_the_other() -> None:
    b = broker()
    group = ask(b, 1, 1)
    first, second = b.tick()
    b.finish(first, replied=True)
    b.cancel(group)
    assert b.answers[group] == ["OK", None]
    b.fail(second)
    # It was cancelled first.
    assert b.answers[group] == ["OK", "CANCELLED"]


def test_a_large_request_that_failed_is_answered_when_its_last_piece_is_back() -> None:
    b = broker()
    group = ask(b, 2)
    first, second = b.tick()
    b.fail(first)
    assert b.answers[group] == [None]
    b.finish(second)
    assert b.answers[group] == ["INTERNAL"]
    assert b.tick() == []


@pytest.mark.parametrize("ends", ["fail", "lose"])
def test_a_batch_that_comes_back_without_outputs_lets_the_refusal_go(ends: str) -> None:
    b = broker()
    group = ask(b, 1)
    batch = b.tick_one()
    b.cancel(group)
    if ends == "fail":
        b.fail(batch)
    else:
        b.lose(batch.worker_id)
        # It may write until it is gone.
        assert b.answers[group] == [None]
        b.reap(batch.worker_id)
    assert b.answers[group] == ["CANCELLED"]


def test_requests_on_a_lost_worker_are_answered_when_the_other_worker_is_done() -> None:
    b = broker(retry=False)
    group = ask(b, 2)
    lost, other = b.tick()
    b.lose(lost.worker_id)
    b.reap(lost.worker_id)
    # The other may write to its reply space.
    assert b.answers[group] == [None]
    b.finish(other)
    assert b.answers[group] == ["UNAVAILABLE"]


def test_a_message_in_the_batches_of_two_lost_workers_is_answered_once() -> None:
    b = broker(retry=False)
    group = ask(b, 1, 1)
    one, two = b.tick()
    b.lose(one.worker_id)
    b.lose(two.worker_id)
    b.reap(one.worker_id)
    assert b.answers[group] == [None, None]
    b.reap(two.worker_id)
    assert b.answers[group] == ["UNAVAILABLE", "UNAVAILABLE"]


def test_a_refusal_waits_for_what_runs_again_of_the_message() -> None:
    b = broker()
    group = ask(b, 1, 1)
    lost, other = b.tick()
    b.lose(lost.worker_id)
    b.reap(lost.worker_id)
    b.finish(other)
    again = b.tick_one()
    b.cancel(group)
    assert b.answers[group].count(None) == 1
    b.finish(again)
    assert sorted(filter(None, b.answers[group])) == ["CANCELLED", "OK"]


def test_one_batch_with_two_parts_of_a_message_comes_back_once() -> None:
    b = broker(max_batch_size=4)
    group = ask(b, 1, 1, 1)
    batch = b.tick_one()
    b.cancel(group, 1, 1)
    b.cancel(group)
    deliver = b.finish(batch, replied=True)
    assert deliver.parts == []
    assert b.answers[group] == ["CANCELLED"] * 3


def test_what_a_lost_worker_says_later_lets_nothing_go_twice() -> None:
    b = broker()
    group = ask(b, 2)
    lost, other = b.tick()
    b.cancel(group)
    b.lose(lost.worker_id)
    assert b.handle(events.BatchFinished(lost.id, 0, False, True)) == []
    b.reap(lost.worker_id)
    assert b.answers[group] == [None]
    b.fail(other)
    assert b.answers[group] == ["CANCELLED"]


def test_replied_is_told_to_the_replies() -> None:
    b = broker()
    ask(b, 1)
    assert b.finish(b.tick_one(), replied=True).replied
    ask(b, 1)
    assert not b.finish(b.tick_one()).replied


def test_a_client_that_left_while_its_batch_runs_hears_nothing() -> None:
    b = broker(max_batch_size=2)
    gone, stays = ask(b, 1, client=b"gone"), b.ask(1, client=b"stays")
    batch = b.tick_one()
    b.leave(b"gone")
    deliver = b.finish(batch, replied=True)
    assert [part.group for part, _ in deliver.parts] == [stays]
    assert b.answers[gone] == [LEFT]
    assert b.messages == []


def test_a_client_that_left_after_it_cancelled_hears_nothing() -> None:
    b = broker()
    group = ask(b, 1)
    batch = b.tick_one()
    b.cancel(group)
    b.leave(b"c")
    b.finish(batch)
    assert b.answers[group] == [LEFT]
    assert b.messages == []
    assert b.state.is_idle


def test_the_outputs_of_one_request_wait_for_the_batch_of_one_that_was_cancelled() -> None:
    b = broker()
    group = ask(b, 1, 1)
    first, second = b.tick()
    b.cancel(group, 0, 1)
    b.finish(second, replied=True)
    assert None in b.answers[group]
    b.finish(first)
    assert b.answers[group] == ["CANCELLED", "OK"]


def test_a_refusal_that_waits_is_not_forgotten_when_the_broker_drains() -> None:
    b = broker()
    group = ask(b, 1)
    batch = b.tick_one()
    b.cancel(group)
    b.handle(events.DrainStarted())
    assert not b.state.is_idle
    b.finish(batch)
    assert b.answers[group] == ["CANCELLED"]
    assert b.state.is_idle


def test_what_is_done_with_a_batch_comes_in_order() -> None:
    """The outputs of others in the batch first, then the refusal that waited for it."""
    b = broker(max_batch_size=2)
    group, other = ask(b, 1), b.ask(1, client=b"other")
    batch = b.tick_one()
    b.cancel(group)
    actions = b.state.handle(events.BatchFinished(batch.id, 0, False), b.now)
    assert [type(action) for action in actions] == [Deliver, Refuse]
    assert isinstance(actions[0], Deliver)
    assert [part.group for part, _ in actions[0].parts] == [other]
