"""Messages that are sent again after a reload, in virtual time: what still runs of them runs by
what was configured before."""

from __future__ import annotations

import pytest
from support.broker_builders import ROW_NBYTES, make_model, make_report
from support.poison import run_all
from support.virtual_broker import VirtualBroker

from batchyard.broker import events
from batchyard.broker.catalog import ServedModel

ID = 1 << 50


def broker(*models: ServedModel) -> VirtualBroker:
    made = VirtualBroker(*models)
    for _ in range(2):
        made.start_worker(*(make_report(version=model.version) for model in models))
    return made


def with_versions() -> VirtualBroker:
    """Of ``m``; the first is current."""
    return broker(make_model(), make_model(version=2, is_current=False))


def restarted(before: VirtualBroker) -> VirtualBroker:
    b = before.restart()
    b.resume_all(before)
    return b


def test_what_another_version_ran_is_claimed_by_nobody_later() -> None:
    before = with_versions()
    group = before.ask(1, 1, message_id=ID)
    batch = before.tick_one()
    b = restarted(before)
    b.finish_orphan(batch.id)
    b.handle(events.ModelsChanged([make_model(is_current=False), make_model(version=2)]))
    b.resend(group)
    b.handle(events.ModelsChanged([make_model(), make_model(version=2, is_current=False)]))
    again = b.resend(group, client=b"later")
    # It counts once, and runs once more.
    assert b.state.queue_nbytes == 2 * ROW_NBYTES
    assert [batch.lane.model.version for batch in run_all(b)] == [1]
    assert b.answers[again] == ["OK", "OK"]


def test_what_another_version_runs_is_not_taken_over() -> None:
    before = with_versions()
    group = before.ask(1, 1, message_id=ID)
    batch = before.tick_one()
    b = restarted(before)
    b.resend(group)
    b.handle(events.ModelsChanged([make_model(version=2)]))
    again = b.resend(group, client=b"later")
    assert b.unloaded == []
    b.finish_orphan(batch.id)
    # Nobody waits for the old one any more.
    assert b.unloaded == [("m", 1)]
    assert [batch.lane.model.version for batch in run_all(b)] == [2]
    assert b.answers[again] == ["OK", "OK"]


def test_what_another_version_runs_does_need_room_in_the_queue() -> None:
    before = with_versions()
    group = before.ask(*[1] * 4, message_id=ID)
    before.tick_one()
    b = restarted(before)
    bound = make_model(version=2, max_enqueued_batches=1)
    b.handle(events.ModelsChanged([make_model(is_current=False), bound]))
    b.ask(1)
    again = b.resend(group)
    assert b.answers[again] == [None] * 3 + ["UNAVAILABLE"]


@pytest.mark.parametrize("rows", [[3], [1] * 4])
def test_what_runs_in_larger_batches_than_may_be_now_is_run_anew(rows: list[int]) -> None:
    """It could not run again: no size is allowed that holds it."""
    before = broker(make_model(allowed_batch_sizes=(4,)))
    group = before.ask(*rows, message_id=ID)
    batch = before.tick_one()
    b = restarted(before)
    b.handle(events.ModelsChanged([make_model(max_batch_size=1, allowed_batch_sizes=(1,))]))
    again = b.resend(group)
    b.lose(batch.worker_id)
    b.reap(batch.worker_id)
    run_all(b)
    assert b.answers[again] == ["OK"] * len(rows)
