"""Messages that are sent again, in virtual time: what still runs of them is not run again."""

from __future__ import annotations

from typing import Any

import pytest
from support.broker_builders import (
    ROW_NBYTES,
    make_model,
    make_report,
    make_target,
)
from support.poison import requests_of, run_all
from support.virtual_broker import VirtualBroker, as_execute

from batchyard.broker import events
from batchyard.broker.events import Deliver
from batchyard.wire.errors import InvalidArgument, NotFound, ResourceExhausted

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


def restarted(before: VirtualBroker) -> VirtualBroker:
    b = before.restart()
    b.resume_all(before)
    return b


# To a broker that was started anew


def test_a_request_that_still_runs_is_answered_by_that_run() -> None:
    before = broker()
    group = before.ask(1, 1, message_id=ID)
    batch = before.tick_one()
    b = restarted(before)
    again = b.resend(group)
    assert b.tick() == []
    assert b.state.queue_nbytes == 0
    b.finish_orphan(batch.id)
    assert b.answers[again] == ["OK", "OK"]
    assert b.state.is_idle


def test_a_request_whose_run_has_ended_is_answered_at_once() -> None:
    before = broker()
    group = before.ask(1, 1, message_id=ID)
    batch = before.tick_one()
    b = restarted(before)
    b.finish_orphan(batch.id)
    b.tick(9.9)
    again = b.resend(group)
    assert b.answers[again] == ["OK", "OK"]
    assert b.tick() == []


def test_of_a_message_only_what_does_not_run_is_run() -> None:
    before = broker(max_batch_size=2)
    group = before.ask(*[1] * 7, message_id=ID)
    first, second = before.tick()
    b = restarted(before)
    again = b.resend(group)
    assert b.state.queue_nbytes == 7 * ROW_NBYTES
    assert again.lane.model.queued_rows == 3
    b.finish_orphan(first.id)
    b.finish_orphan(second.id)
    assert b.answers[again] == ["OK"] * 4 + [None] * 3
    assert [requests_of(batch) for batch in run_all(b)] == [
        [(again, 4), (again, 5)],
        [(again, 6)],
    ]
    assert b.is_all_answered


def test_two_clients_of_one_batch_each_get_their_rows() -> None:
    before = broker()
    groups = [before.ask(1, 1, client=b"1", message_id=ID)]
    groups.append(before.ask(1, client=b"2", message_id=OTHER_ID))
    batch = before.tick_one()
    b = restarted(before)
    early = b.resend(groups[1], client=b"3")
    b.finish_orphan(batch.id)
    assert b.answers[early] == ["OK"]
    late = b.resend(groups[0], client=b"4")
    assert b.answers[late] == ["OK", "OK"]


def test_a_client_that_was_answered_in_part_gives_up_the_rest_alone() -> None:
    before = broker()
    group = before.ask(1, 1, message_id=ID)
    other = before.ask(1, client=b"other", message_id=OTHER_ID)
    batch = before.tick_one()
    b = restarted(before)
    again, kept = b.resend(group), b.resend(other, client=b"o")
    b.cancel(again)
    assert b.answers[again] == ["CANCELLED", "CANCELLED"]
    b.finish_orphan(batch.id)
    assert b.answers[kept] == ["OK"]


def test_a_client_may_leave_again() -> None:
    before = broker()
    group = before.ask(1, message_id=ID)
    batch = before.tick_one()
    b = restarted(before)
    b.resend(group, client=b"gone")
    b.leave(b"gone")
    b.finish_orphan(batch.id)
    assert b.state.is_idle


def test_pieces_of_a_large_request_that_run_are_joined_with_the_others() -> None:
    before = broker(workers=2)
    group = before.ask(11, message_id=ID)
    first, second = before.tick()
    before.finish(first)
    # The first piece's outputs died with the broker.
    b = restarted(before)
    again = b.resend(group)
    assert again.lane.model.queued_rows == 7
    ran = b.tick()
    b.finish_orphan(second.id)
    for batch in ran:
        b.finish(batch)
    run_all(b)
    assert b.answers[again] == ["OK"]


def large_and_others(rows: list[int]) -> None:
    before = broker(workers=3)
    group = before.ask(*rows, message_id=ID)
    batches = before.tick()
    b = restarted(before)
    again = b.resend(group)
    for batch in batches:
        b.finish_orphan(batch.id)
    run_all(b)
    assert b.answers[again] == ["OK"] * len(rows)


@pytest.mark.parametrize("rows", [[9], [1, 9], [9, 1]])
def test_a_message_with_one_large_request_is_joined(rows: list[int]) -> None:
    large_and_others(rows)


@pytest.mark.parametrize("rows", [[9, 9], [6, 1, 7, 5], [18, 6], [4, 2, 9, 1, 1]])
def test_a_message_with_several_large_requests_is_joined(rows: list[int]) -> None:
    large_and_others(rows)


@pytest.mark.xfail(strict=True, reason="who was cut for its outputs is not known to be")
def test_rows_of_a_request_that_was_cut_for_its_outputs_are_not_run_twice() -> None:
    before = broker(max_batch_size=8)
    group = before.ask(8, message_id=ID)
    before.fail(before.tick_one(), ResourceExhausted("OOM"))
    pieces = before.tick()
    assert [piece.rows for piece in pieces] == [4, 4]
    b = restarted(before)
    again = b.resend(group)
    assert b.tick() == []
    for piece in pieces:
        b.finish_orphan(piece.id)
    assert b.answers[again] == ["OK"]


def test_ids_that_others_may_have_join_nothing() -> None:
    before = broker()
    group = before.ask(1, message_id=(1 << 40) - 1)
    batch = before.tick_one()
    b = restarted(before)
    again = b.resend(group)
    b.finish_orphan(batch.id)
    assert b.answers[again] == [None]
    b.finish(b.tick_one())
    assert b.answers[again] == ["OK"]


def test_a_message_that_is_not_resent_joins_nothing() -> None:
    before = broker()
    before.ask(1, message_id=ID)
    batch = before.tick_one()
    b = restarted(before)
    b.finish_orphan(batch.id)
    group = b.ask(1, message_id=ID)
    b.finish(b.tick_one())
    assert b.answers[group] == ["OK"]


@pytest.mark.parametrize("rows", [(1,), (2,), (1, 1, 1), (2, 1)])
def test_another_message_under_the_same_id_gets_what_it_asked_for(rows: tuple[int, ...]) -> None:
    """A client should not, but it hurts nobody: at most it has rows that it did not ask for."""
    before = broker()
    before.ask(3, message_id=ID)
    batch = before.tick_one()
    b = before.restart()
    b.resume_all(before)
    b.orphans[batch.id].claimed.add(ID)
    group = b.ask(*rows, message_id=ID, resent=True)
    b.finish_orphan(batch.id)
    run_all(b)
    assert b.answers[group] == ["OK"] * len(rows)


def test_a_broker_that_drains_takes_what_the_one_before_had_accepted() -> None:
    before = broker(max_batch_size=2)
    group = before.ask(*[1] * 3, message_id=ID)
    batch = before.tick_one()
    b = restarted(before)
    b.handle(events.DrainStarted())
    # The orphan's client may come still.
    assert not b.state.is_idle
    again, new = b.resend(group), b.ask(1)
    assert (b.answers[again], b.answers[new]) == ([None] * 3, ["UNAVAILABLE"])
    b.finish_orphan(batch.id)
    run_all(b)
    assert b.answers[again] == ["OK"] * 3
    assert b.state.is_idle


# When what runs comes to nothing


@pytest.mark.parametrize("resent_first", [True, False])
def test_an_orphan_that_raised_is_split(resent_first: bool) -> None:
    before = broker()
    group = before.ask(*[1] * 4, message_id=ID)
    batch = before.tick_one()
    b = restarted(before)
    again = b.resend(group) if resent_first else None
    b.fail_orphan(batch.id, BAD)
    again = again or b.resend(group)
    ran = run_all(b, {(again, 2): BAD})
    assert b.answers[again] == ["OK", "OK", "INVALID_ARGUMENT", "OK"]
    assert [batch.rows for batch in ran] == [2, 2, 1, 1]


def test_an_orphan_of_one_that_raised_is_its_error() -> None:
    before = broker()
    group = before.ask(1, message_id=ID)
    batch = before.tick_one()
    b = restarted(before)
    again = b.resend(group)
    b.fail_orphan(batch.id, BAD)
    assert b.answers[again] == ["INVALID_ARGUMENT"]


def test_when_its_worker_dies_what_was_joined_is_suspected() -> None:
    before = broker(workers=2)
    group = before.ask(*[1] * 4, message_id=ID)
    batch = before.tick_one()
    b = restarted(before)
    again = b.resend(group)
    b.lose(batch.worker_id)
    assert b.tick(1.0) == []
    b.reap(batch.worker_id)
    assert [requests_of(batch) for batch in run_all(b)] == [[(again, i)] for i in range(4)]
    assert b.answers[again] == ["OK"] * 4
    assert b.forgotten == [batch.id]


def test_what_is_sent_again_after_the_worker_died_waits_until_it_is_reaped() -> None:
    before = broker(workers=2)
    group = before.ask(1, message_id=ID)
    batch = before.tick_one()
    b = restarted(before)
    b.lose(batch.worker_id)
    again = b.resend(group)
    assert b.tick() == []
    b.reap(batch.worker_id)
    b.finish(b.tick_one())
    assert b.answers[again] == ["OK"]


# Where nothing may run twice


def test_what_runs_is_answered_and_the_rest_is_unavailable() -> None:
    before = broker(max_batch_size=2, retry=False)
    group = before.ask(*[1] * 5, message_id=ID)
    batch, ahead = before.tick()
    before.finish(batch)
    b = restarted(before)
    again = b.resend(group)
    assert b.answers[again] == ["UNAVAILABLE"] * 2 + [None] * 2 + ["UNAVAILABLE"]
    assert "it is not tried again" in b.messages[-1]
    b.finish_orphan(ahead.id)
    assert b.answers[again] == ["UNAVAILABLE"] * 2 + ["OK"] * 2 + ["UNAVAILABLE"]
    assert b.tick() == []


def test_whose_run_is_not_known_is_unavailable() -> None:
    b = broker(retry=False)
    group = b.ask(1, message_id=ID, resent=True)
    assert b.answers[group] == ["UNAVAILABLE"]
    # What was never sent before has not run.
    fresh = b.ask(1, message_id=OTHER_ID)
    b.finish(b.tick_one())
    assert b.answers[fresh] == ["OK"]


def test_a_large_request_of_which_a_piece_is_lost_is_unavailable() -> None:
    before = broker(workers=2, retry=False)
    group = before.ask(8, message_id=ID)
    first, second = before.tick()
    before.finish(first)
    b = restarted(before)
    again = b.resend(group)
    assert b.tick() == []
    b.finish_orphan(second.id)
    assert b.answers[again] == ["UNAVAILABLE"]


# More than once


def test_what_was_joined_is_taken_over_by_the_next_connection() -> None:
    before = broker()
    group = before.ask(1, 1, message_id=ID)
    batch = before.tick_one()
    b = restarted(before)
    b.resend(group, client=b"2")
    again = b.resend(group, client=b"3")
    assert b.tick() == []
    b.finish_orphan(batch.id)
    assert b.answers[again] == ["OK", "OK"]


def test_rows_that_two_workers_have_are_answered_once() -> None:
    before = broker(workers=2)
    group = before.ask(1, 1, message_id=ID)
    first = before.tick_one()
    # Its lane is another now: nothing is taken over, the rows run twice.
    before.handle(events.ModelsChanged([make_model()]))
    before.resend(group)
    second = before.tick_one()
    b = restarted(before)
    again = b.resend(group)
    assert again.lane.model.queued_rows == 0
    assert b.state.queue_nbytes == 0
    actions = [b.state.handle(events.BatchFinished(n.id, 0, False), b.now) for n in (first, second)]
    delivers = [action for some in actions for action in some if isinstance(action, Deliver)]
    assert [(part.first, part.count) for d in delivers for part, _ in d.parts] == [(0, 2)]
    assert b.state.is_idle


def test_what_runs_needs_no_room_in_the_queue() -> None:
    before = broker(max_enqueued_batches=1)
    groups = []
    for message_id in (ID, OTHER_ID):
        groups.append(before.ask(*[1] * 4, message_id=message_id))
        before.tick_one()
    b = restarted(before)
    b.ask(1)
    again = [b.resend(group, client=b"%d" % group.message_id) for group in groups]
    assert all(None in b.answers[group] for group in again)
    assert not any("UNAVAILABLE" in b.answers[group] for group in again)


def test_a_version_that_is_gone_is_not_found() -> None:
    before = broker()
    group = before.ask(1, message_id=ID)
    batch = before.tick_one()
    b = VirtualBroker(make_model("n"), awaited=[0])
    b.tell_resumed(0, [as_execute(batch)])
    b.start_worker(make_report(), worker_id=0)
    with pytest.raises(NotFound):
        b.resend(group)
    with pytest.raises(NotFound):
        b.ask(1, message_id=ID, resent=True, target=make_target(version=1))
