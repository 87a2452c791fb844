"""A broker that goes on where another died, in virtual time: what workers tell that they have."""

from __future__ import annotations

from typing import Any

import pytest
from support.broker_builders import ROW_NBYTES, make_model, make_report, make_target
from support.poison import requests_of, run_all
from support.virtual_arena import make_region
from support.virtual_broker import VirtualBroker, as_execute

from batchyard.broker import events
from batchyard.broker.events import Batch, Deliver
from batchyard.wire.errors import InvalidArgument, NotFound
from batchyard.wire.protocol import RegionPlaces
from batchyard.wire.work import Resumed

ID = 1 << 50
PATIENCE_S = 10.0


def broker(workers: int = 1, concurrent_batches: int = 1, **parameters: Any) -> VirtualBroker:
    made = VirtualBroker(make_model(**parameters), arena_nbytes=32 * ROW_NBYTES)
    for _ in range(workers):
        made.start_worker(concurrent_batches=concurrent_batches)
    return made


def restarted(before: VirtualBroker) -> VirtualBroker:
    b = before.restart()
    b.resume_all(before)
    return b


# What the workers have


def test_nothing_goes_out_before_every_worker_has_told() -> None:
    before = broker(workers=2)
    b = before.restart()
    b.resume(before, 0)
    group = b.ask(1)
    assert b.tick(1.0) == []
    assert b.state.awaited == {1}
    assert b.state.next_wakeup() == float("inf")
    b.resume(before, 1)
    b.finish(b.tick_one())
    assert b.answers[group] == ["OK"]


def test_a_worker_that_is_gone_is_not_waited_for() -> None:
    before = broker(workers=2)
    b = before.restart()
    b.resume(before, 0)
    b.lose(1)
    group = b.ask(1)
    # It may write to a block that is not known.
    assert b.tick() == []
    b.reap(1, comes_back=True)
    b.finish(b.tick_one())
    assert b.answers[group] == ["OK"]


def test_a_new_worker_in_the_place_of_another_is_no_word_of_that_one() -> None:
    before = broker()
    b = before.restart()
    b.start_worker(worker_id=7, slot=0)
    b.ask(1)
    assert b.tick() == []
    b.reap(0)
    assert len(b.tick()) == 1


def test_deadlines_are_kept_while_workers_are_awaited() -> None:
    before = broker(workers=2)
    b = before.restart()
    b.resume(before, 0)
    group = b.ask(1, timeout_s=0.5)
    assert b.state.next_wakeup() == b.now + 0.5
    b.tick(0.5)
    assert b.answers[group] == ["DEADLINE_EXCEEDED"]


def test_blocks_of_batches_that_still_run_are_not_handed_out() -> None:
    before = broker(workers=2)
    for _ in range(3):
        before.ask(*[1] * 4)
    batches = before.tick()
    b = restarted(before)
    assert b.state.allocator.used_nbytes == sum(batch.block.nbytes for batch in batches)
    b.ask(*[1] * 8)
    # The books compare blocks; there is room in the queue of one worker.
    assert len(b.tick()) == 1
    b.finish_orphan(batches[0].id)
    used = b.state.allocator.used_nbytes
    b.finish_orphan(batches[1].id)
    assert b.state.allocator.used_nbytes == used - batches[1].block.nbytes


def test_batch_ids_go_on() -> None:
    before = broker(workers=2)
    before.ask(*[1] * 8)
    batches = before.tick()
    before.ask(*[1] * 4)
    kept = before.tick_one()
    before.finish(batches[0])
    before.finish(kept, kept=True)
    b = restarted(before)
    b.ask(1)
    assert b.tick_one().id > max(*(batch.id for batch in batches), kept.id)


def test_inputs_that_a_model_keeps_hold_their_block_over_brokers() -> None:
    before = broker()
    before.ask(1)
    batch = before.tick_one()
    before.finish(batch, kept=True)
    b = restarted(before)
    assert b.state.allocator.used_nbytes == batch.block.nbytes
    b.release(batch.id)
    assert b.state.allocator.used_nbytes == 0


def test_an_orphan_may_be_answered_as_kept() -> None:
    before = broker()
    before.ask(1)
    batch = before.tick_one()
    b = restarted(before)
    b.finish_orphan(batch.id, kept=True)
    assert b.state.allocator.used_nbytes == batch.block.nbytes
    b.release(batch.id)
    assert b.state.allocator.used_nbytes == 0


@pytest.mark.parametrize("kept", [False, True])
def test_the_blocks_of_a_worker_that_dies_are_free_when_it_is_reaped(kept: bool) -> None:
    before = broker()
    before.ask(1)
    batch = before.tick_one()
    if kept:
        before.finish(batch, kept=True)
    b = restarted(before)
    b.lose(0)
    assert b.state.allocator.used_nbytes == batch.block.nbytes
    b.reap(0, comes_back=True)
    assert b.state.allocator.used_nbytes == 0
    assert b.forgotten == ([] if kept else [batch.id])


def test_a_block_of_two_batches_is_a_lie() -> None:
    before = broker()
    before.ask(1)
    execute = as_execute(before.tick_one())
    b = before.restart()
    told = events.BatchesResumed(0, Resumed([execute, execute], []))
    with pytest.raises(ValueError, match="not free"):
        b.state.handle(told, b.now)


def test_what_a_worker_still_has_counts_as_its_load() -> None:
    before = broker(workers=2)
    before.ask(*[1] * 4)
    running = before.tick_one()
    b = restarted(before)
    b.ask(*[1] * 4)
    assert b.tick_one().worker_id != running.worker_id
    b.ask(*[1] * 4)
    b.ask(*[1] * 4)
    # One ahead for each: nobody waits for a third.
    assert len(b.tick()) == 2
    b.ask(*[1] * 4)
    assert b.tick() == []
    b.finish_orphan(running.id)
    assert b.tick_one().worker_id == running.worker_id


def test_a_worker_that_retires_first_tells_and_ends_what_it_has() -> None:
    before = broker(workers=2)
    before.ask(*[1] * 4)
    running = before.tick_one()
    b = before.restart()
    actions = b.handle(events.WorkerRetiring(running.worker_id))
    assert actions == []
    b.resume_all(before)
    # It gets nothing more.
    b.ask(1)
    assert b.tick_one().worker_id != running.worker_id
    assert events.Retired(running.worker_id) in b.finish_orphan(running.id)


# What nobody asks for


def test_outputs_that_nobody_asks_for_are_forgotten() -> None:
    before = broker()
    before.ask(1, message_id=ID)
    batch = before.tick_one()
    b = restarted(before)
    assert b.state.is_resumed(batch.id)
    assert b.finish_orphan(batch.id) == []
    assert b.state.is_resumed(batch.id)
    assert b.state.next_wakeup() == b.now + PATIENCE_S
    b.tick(PATIENCE_S - 0.1)
    assert b.forgotten == []
    b.tick(0.1)
    assert b.forgotten == [batch.id]
    assert not b.state.is_resumed(batch.id)
    assert b.state.is_quiet
    # Who asks now has it run again.
    group = b.ask(1, message_id=ID, resent=True)
    b.finish(b.tick_one())
    assert b.answers[group] == ["OK"]


def test_patience_begins_when_the_batch_has_ended() -> None:
    before = broker()
    before.ask(1, message_id=ID)
    batch = before.tick_one()
    b = restarted(before)
    b.tick(100.0)
    group = b.ask(1, message_id=ID, resent=True)
    assert b.tick() == []
    b.finish_orphan(batch.id)
    assert b.answers[group] == ["OK"]
    b.tick(PATIENCE_S)
    assert b.forgotten == [batch.id]


def test_an_orphan_is_answered_once() -> None:
    before = broker()
    group = before.ask(1, message_id=ID)
    batch = before.tick_one()
    b = restarted(before)
    b.resend(group)
    b.finish_orphan(batch.id)
    for event in (
        events.BatchFinished(batch.id, 0, False),
        events.BatchFailed(batch.id, InvalidArgument("late"), False),
        events.BatchDelivered(batch.id),
    ):
        assert b.handle(event) == []


# Workers of the broker before that hang, retire, or die


def hanging() -> tuple[VirtualBroker, Batch]:
    before = broker(timeout_s=5.0)
    before.ask(1, message_id=ID)
    batch = before.tick_one()
    before.now += 3.0
    return restarted(before), batch


def test_what_hangs_is_noticed_though_nobody_knows_since_when() -> None:
    b, batch = hanging()
    assert b.state.next_wakeup() == b.now + 5.0
    b.tick(4.9)
    assert b.killed == []
    b.tick(0.1)
    assert b.killed == [(0, "a batch ran longer than batch_execution_timeout")]
    b.reap(0, comes_back=True)
    assert b.forgotten == [batch.id]


def test_a_worker_that_was_killed_wakes_the_loop_no_more() -> None:
    b, _ = hanging()
    b.tick(5.0)
    assert b.state.next_wakeup() == float("inf")


def test_a_batch_that_was_ahead_of_an_orphan_may_hang_too() -> None:
    b, batch = hanging()
    b.ask(*[1] * 4)
    b.tick_one()
    b.finish_orphan(batch.id)
    b.tick(5.0)
    assert [worker for worker, _ in b.killed] == [0]


def test_a_batch_that_was_ahead_of_an_orphan_is_suspected_once_it_runs() -> None:
    before = broker()
    before.ask(1)
    batch = before.tick_one()
    b = restarted(before)
    group = b.ask(*[1] * 4)
    b.tick_one()
    b.finish_orphan(batch.id)
    b.die(0)
    assert [requests_of(batch) for batch in run_all(b)] == [[(group, i)] for i in range(4)]


def test_the_one_ahead_has_its_own_time() -> None:
    before = broker(timeout_s=5.0)
    before.ask(*[1] * 8)
    first, ahead = before.tick()
    b = restarted(before)
    b.tick(4.0)
    b.finish_orphan(first.id)
    b.tick(4.0)
    assert b.killed == []
    b.finish_orphan(ahead.id)


def test_a_worker_retires_when_its_orphans_are_answered() -> None:
    before = broker(workers=2)
    before.ask(*[1] * 8)
    batches = before.tick()
    b = restarted(before)
    for batch in batches:
        b.retire(batch.worker_id)
        assert b.retired == []
    for batch in batches:
        b.finish_orphan(batch.id)
    assert b.retired == [batch.worker_id for batch in batches]


def test_when_all_workers_died_with_the_broker_the_next_ones_serve() -> None:
    before = broker(workers=2)
    before.ask(*[1] * 8, message_id=ID)
    before.tick()
    b = before.restart()
    for worker in (0, 1):
        b.reap(worker, comes_back=True)
    b.start_worker(slot=0)
    group = b.ask(*[1] * 8, message_id=ID, resent=True)
    run_all(b)
    assert b.answers[group] == ["OK"] * 8


def test_outputs_in_a_region_of_the_broker_before_are_nobodys() -> None:
    before = broker()
    places = RegionPlaces([[0]], [(4096, 64)])
    before.ask(1, message_id=ID, frames=[], region=make_region(), places=places)
    batch = before.tick_one()
    b = restarted(before)
    group = b.ask(1, message_id=ID, resent=True)
    assert b.tick() == []
    b.finish_orphan(batch.id)
    assert b.answers[group] == [None]
    assert requests_of(b.tick_one()) == [(group, 0)]


def test_an_orphan_of_a_version_that_is_served_no_more() -> None:
    before = broker()
    before.ask(1, message_id=ID)
    batch = before.tick_one()
    b = VirtualBroker(make_model("n"), awaited=[0])
    b.tell_resumed(0, [as_execute(batch)])
    b.start_worker(make_report(), make_report(name="n"), worker_id=0)
    assert b.unloaded == [("m", 1)]
    with pytest.raises(NotFound):
        b.ask(1, message_id=ID, resent=True)
    other = b.ask(1, message_id=ID, resent=True, target=make_target(model="n"))
    b.finish_orphan(batch.id)
    b.finish(b.tick_one())
    assert b.answers[other] == ["OK"]


def test_what_claims_get_is_their_place_in_the_batch() -> None:
    before = broker()
    before.ask(1, client=b"1")
    group = before.ask(1, 1, client=b"2", message_id=ID)
    before.ask(1, client=b"3")
    batch = before.tick_one()
    b = restarted(before)
    b.resend(group)
    deliver, *_ = b.finish_orphan(batch.id)
    assert isinstance(deliver, Deliver)
    assert [(part.first, part.count, row) for part, row in deliver.parts] == [(0, 2, 1)]
    assert (deliver.batch.id, deliver.batch.rows) == (batch.id, 4)
