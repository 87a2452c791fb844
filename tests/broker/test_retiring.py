"""Workers that retire, in virtual time: they end what they have and get nothing more."""

from __future__ import annotations

from support.broker_builders import make_model
from support.poison import run_all
from support.virtual_broker import VirtualBroker

from batchyard.wire.errors import InvalidArgument


def broker(workers: int = 2) -> VirtualBroker:
    made = VirtualBroker(make_model())
    for _ in range(workers):
        made.start_worker()
    return made


def test_a_worker_without_batches_retires_at_once() -> None:
    b = broker()
    b.retire(0)
    assert b.retired == [0]
    b.ask(*[1] * 8)
    assert [batch.worker_id for batch in b.tick()] == [1, 1]


def test_a_worker_that_retires_finishes_what_it_has_and_gets_nothing_more() -> None:
    b = broker()
    b.ask(*[1] * 4)
    first = b.tick_one()
    b.ask(*[1] * 4)
    b.tick()
    b.ask(*[1] * 4)
    ahead = next(batch for batch in b.tick() if batch.worker_id == first.worker_id)
    b.retire(first.worker_id)
    b.ask(*[1] * 8)
    b.finish(first)
    assert all(batch.worker_id != first.worker_id for batch in b.tick())
    assert b.retired == []
    b.finish(ahead)
    assert b.retired == [first.worker_id]
    b.reap(first.worker_id)
    run_all(b)
    assert b.is_all_answered


def test_the_last_batch_may_raise() -> None:
    b = broker()
    group = b.ask(1, 1)
    batch = b.tick_one()
    b.retire(batch.worker_id)
    b.fail(batch, InvalidArgument("bad"))
    assert b.retired == [batch.worker_id]
    assert {batch.worker_id for batch in run_all(b)} == {1}
    assert b.answers[group] == ["OK", "OK"]


def test_replies_and_kept_inputs_do_not_hold_a_worker_up() -> None:
    b = broker()
    b.ask(1)
    batch = b.tick_one()
    b.retire(0)
    b.finish(batch, kept=True, delivered=False)
    assert b.retired == [0]
    # But its block is in use until the process is gone.
    b.deliver(batch)
    assert b.state.allocator.used_nbytes == batch.block.nbytes
    b.reap(0)
    assert b.state.allocator.used_nbytes == 0


def test_a_worker_that_retires_while_it_runs_a_suspect() -> None:
    b = broker()
    group = b.ask(1, 1)
    first = b.tick_one()
    b.lose(first.worker_id)
    b.reap(first.worker_id)
    suspect = b.tick_one()
    b.retire(suspect.worker_id)
    new = b.start_worker(slot=first.worker_id)
    assert b.tick_one().worker_id == new
    b.finish(suspect)
    assert b.retired == [suspect.worker_id]
    run_all(b)
    assert b.answers[group] == ["OK", "OK"]


def test_requests_wait_while_the_only_worker_is_replaced() -> None:
    b = broker(workers=1)
    b.retire(0)
    group = b.ask(1)
    b.reap(0, comes_back=True)
    assert b.answers[group] == [None]
    b.start_worker(slot=0)
    b.finish(b.tick_one())
    assert b.answers[group] == ["OK"]
