"""Workers that die, in virtual time: who may have been the reason, and how that is found out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from support.broker_builders import ROW_NBYTES, make_model, make_report, make_target
from support.poison import requests_of, run_all
from support.virtual_arena import make_region
from support.virtual_books import Request
from support.virtual_broker import VirtualBroker

from batchyard.broker import events
from batchyard.broker.events import Batch
from batchyard.wire.errors import InvalidArgument
from batchyard.wire.protocol import RegionPlaces


def broker(
    workers: int = 1, concurrent_batches: int = 1, stateful: bool = False, **parameters: Any
) -> VirtualBroker:
    made = VirtualBroker(make_model(**parameters))
    for _ in range(workers):
        report = make_report(stateful=stateful)
        made.start_worker(report, concurrent_batches=concurrent_batches)
    return made


def killed_by(*poison: Request) -> Callable[[Batch], bool]:
    return lambda batch: any(request in poison for request in requests_of(batch))


def lose_and_reap(b: VirtualBroker, worker: int, comes_back: bool = True) -> None:
    b.lose(worker)
    b.reap(worker, comes_back, why="signal 9")


# What ran is suspect, what waited is not


def test_nothing_runs_again_before_the_process_is_gone() -> None:
    b = broker(workers=2)
    group = b.ask(1, 1)
    batch = b.tick_one()
    b.lose(batch.worker_id)
    assert b.tick(1.0) == []
    assert b.state.queue_nbytes == 0
    b.reap(batch.worker_id)
    assert b.state.queue_nbytes == 2 * ROW_NBYTES
    run_all(b)
    assert b.answers[group] == ["OK", "OK"]


def test_what_was_ahead_goes_back_to_its_lane_and_is_not_suspected() -> None:
    b = broker()
    running, ahead = b.ask(*[1] * 4), b.ask(*[1] * 4)
    b.tick()
    lose_and_reap(b, 0)
    last = b.ask(1)
    assert {group for group, _ in b.suspects} == {running}
    b.start_worker(slot=0)
    assert [requests_of(batch) for batch in run_all(b)] == [
        *[[(running, i)] for i in range(4)],
        [(ahead, i) for i in range(4)],
        [(last, 0)],
    ]


def test_what_was_ahead_is_taken_up_when_the_first_is_answered() -> None:
    b = broker()
    b.ask(*[1] * 4)
    ahead = b.ask(*[1] * 4)
    first, _ = b.tick()
    b.finish(first)
    lose_and_reap(b, 0)
    assert {group for group, _ in b.suspects} == {ahead}


def test_with_two_batches_at_once_both_are_suspected_and_the_one_ahead_is_not() -> None:
    b = broker(concurrent_batches=2)
    groups = [b.ask(*[1] * 4) for _ in range(3)]
    b.tick()
    lose_and_reap(b, 0)
    assert {group for group, _ in b.suspects} == set(groups[:2])
    b.start_worker(concurrent_batches=2, slot=0)
    run_all(b)
    assert b.is_all_answered


def test_requests_that_were_given_up_ahead_do_not_run() -> None:
    b = broker()
    b.ask(*[1] * 4)
    group = b.ask(1, 1, 1)
    b.ask(1, client=b"left")
    b.tick()
    b.cancel(group, 1, 1)
    b.leave(b"left")
    lose_and_reap(b, 0)
    b.start_worker(slot=0)
    run_all(b)
    assert b.answers[group] == ["OK", "CANCELLED", "OK"]


def test_deadlines_that_passed_meanwhile_are_kept() -> None:
    b = broker()
    running = b.ask(1, 1, 1, 1, timeout_s=[0.5, None, None, None])
    ahead = b.ask(1, 1, 1, 1, timeout_s=[None, 0.5, None, None])
    b.tick()
    b.tick(0.4)
    b.lose(0)
    b.tick(0.2)
    assert None in b.answers[running]
    b.reap(0, comes_back=True)
    assert b.answers[running] == ["DEADLINE_EXCEEDED", None, None, None]
    assert b.answers[ahead] == [None, "DEADLINE_EXCEEDED", None, None]
    b.start_worker(slot=0)
    run_all(b)
    assert b.is_all_answered


# Suspects are alone


def test_suspects_run_singly_on_one_worker_that_gets_nothing_else() -> None:
    b = broker(workers=3)
    group = b.ask(*[1] * 4)
    first = b.tick_one()
    lose_and_reap(b, first.worker_id)
    new = b.ask(*[1] * 12, client=b"new")
    suspect, *others = b.tick()
    assert requests_of(suspect) == [(group, 0)]
    assert {batch.worker_id for batch in others} == {1, 2} - {suspect.worker_id}
    assert sum(batch.rows for batch in others) == 8
    # Its worker is set apart: neither the other suspects nor new rows go there.
    assert b.tick(1.0) == []
    for request in range(1, 4):
        b.finish(suspect)
        suspect, *_ = b.tick()
        assert requests_of(suspect) == [(group, request)]
    b.finish(suspect)
    # Now that all are cleared it is as the others.
    assert [batch.worker_id for batch in b.tick()] == [suspect.worker_id]
    run_all(b)
    assert b.answers[group] + b.answers[new] == ["OK"] * 16


def test_the_worker_that_is_set_apart_finishes_what_it_has() -> None:
    b = broker(workers=2)
    suspected, b_running = b.ask(1), b.ask(*[1] * 4, target=make_target(priority=1))
    batches = {batch.parts[0].group: batch for batch in b.tick()}
    lose_and_reap(b, batches[suspected].worker_id, comes_back=False)
    b.ask(*[1] * 4)
    assert b.tick() == []
    b.finish(batches[b_running])
    assert requests_of(b.tick_one()) == [(suspected, 0)]
    run_all(b)
    assert b.is_all_answered


def test_the_least_busy_worker_is_set_apart() -> None:
    b = broker(workers=3)
    suspected, others = b.ask(*[1] * 4), b.ask(*[1] * 8)
    first, second, _ = b.tick()
    b.finish(second)
    lose_and_reap(b, first.worker_id)
    suspect = b.tick_one()
    assert (suspect.worker_id, requests_of(suspect)) == (second.worker_id, [(suspected, 0)])
    run_all(b)
    assert b.answers[others] == ["OK"] * 8


def test_the_only_worker_is_set_apart_and_then_serves_on() -> None:
    b = broker()
    group = b.ask(1, 1)
    b.tick_one()
    b.die(0)
    new = b.ask(*[1] * 4)
    ran = run_all(b)
    assert [requests_of(batch) for batch in ran[:2]] == [[(group, 0)], [(group, 1)]]
    assert b.answers[group] + b.answers[new] == ["OK"] * 6
    later = b.ask(1)
    run_all(b)
    assert b.answers[later] == ["OK"]


@pytest.mark.parametrize("comes", [True, False])
def test_the_last_worker_is_not_risked_while_another_is_on_its_way(comes: bool) -> None:
    b = broker(workers=2)
    group = b.ask(1)
    lose_and_reap(b, b.tick_one().worker_id)
    new = b.ask(1, client=b"new")
    b.finish(b.tick_one())
    assert (b.answers[group], b.answers[new]) == ([None], ["OK"])
    assert b.tick() == []
    if comes:
        b.start_worker(slot=0)
    else:
        # Its slot has failed: better this one than none.
        b.handle(events.WorkerReaped(9, "exit code 1", False, 0))
    assert requests_of(b.tick_one()) == [(group, 0)]


def test_halves_do_not_go_where_suspects_run() -> None:
    b = broker(workers=2)
    group, other = b.ask(*[1] * 4), b.ask(*[1] * 4)
    first, second = b.tick()
    lose_and_reap(b, first.worker_id, comes_back=False)
    b.fail(second, InvalidArgument("bad"))
    (suspect,) = b.tick()
    assert suspect.parts[0].group is group
    worker = b.start_worker(slot=0)
    halves = b.tick()
    assert [(half.worker_id, half.parts[0].group) for half in halves] == [(worker, other)] * 2
    run_all(b)
    assert b.is_all_answered


def test_a_half_that_was_ahead_waits_to_run_again_and_meets_no_new_rows() -> None:
    b = broker()
    group = b.ask(*[1] * 4)
    b.fail(b.tick_one(), InvalidArgument("bad"))
    _, ahead = b.tick()
    new = b.ask(1, 1)
    b.die(0)
    assert {group for group, _ in b.suspects} == {group}
    ran = run_all(b)
    halves = [[(group, 0)], [(group, 1)], requests_of(ahead), [(new, 0), (new, 1)]]
    assert sorted(map(str, map(requests_of, ran))) == sorted(map(str, halves))


def test_a_worker_that_does_not_serve_the_model_is_not_set_apart() -> None:
    b = VirtualBroker(make_model("m"), make_model("n"))
    b.start_worker(make_report(name="m"))
    b.start_worker(make_report(name="n"))
    b.ask(1)
    lose_and_reap(b, b.tick_one().worker_id)
    other = b.ask(1, target=make_target(model="n"))
    b.finish(b.tick_one())
    assert b.answers[other] == ["OK"]


def test_suspects_of_two_models_share_a_worker_but_not_at_once() -> None:
    b = VirtualBroker(make_model("m"), make_model("n"))
    reports = make_report(name="m"), make_report(name="n")
    for _ in range(2):
        b.start_worker(*reports)
    b.ask(1)
    b.ask(1, target=make_target(model="n"))
    for batch in b.tick():
        lose_and_reap(b, batch.worker_id)
    b.start_worker(*reports, slot=0)
    b.start_worker(*reports, slot=1)
    first = b.tick_one()
    b.finish(first)
    second = b.tick_one()
    assert (first.worker_id, first.lane is second.lane) == (second.worker_id, False)


@pytest.mark.parametrize("threads", [1, 2])
def test_num_batch_threads_holds_for_suspects(threads: int) -> None:
    b = broker(workers=3, num_batch_threads=threads)
    group = b.ask(*[1] * 4)
    b.die(b.tick_one().worker_id)
    other = b.ask(*[1] * 8)
    assert len(b.tick()) == threads
    run_all(b)
    assert b.answers[group] + b.answers[other] == ["OK"] * 12


# Several at once, and what else may happen


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_several_workers_may_die_at_once(order: tuple[int, ...]) -> None:
    b = broker(workers=3, max_batch_size=2)
    groups = [b.ask(1, 1) for _ in range(8)]
    b.tick()
    for worker in (0, 1, 2):
        b.lose(worker)
    for worker in order:
        b.reap(worker, comes_back=True)
    assert b.tick(1.0) == []
    assert b.answers[b.ask(1)] == [None]
    for slot in (0, 1, 2):
        b.start_worker(slot=slot)
    run_all(b)
    assert all(b.answers[group] == ["OK", "OK"] for group in groups)
    assert b.is_all_answered


def test_a_worker_may_die_while_it_retires() -> None:
    b = broker(workers=2)
    group = b.ask(*[1] * 4)
    batch = b.tick_one()
    b.retire(batch.worker_id)
    lose_and_reap(b, batch.worker_id, comes_back=False)
    assert b.retired == []
    run_all(b)
    assert b.answers[group] == ["OK"] * 4


def test_a_refusal_comes_when_the_dead_worker_can_write_no_more() -> None:
    b = broker(retry=False)
    places = RegionPlaces([[0, 64]], [(4096, 64), (4160, 64)])
    group = b.ask(1, 1, frames=[], region=make_region(), places=places)
    b.tick_one()
    b.lose(0)
    b.cancel(group)
    assert b.answers[group] == [None, None]
    b.reap(0)
    assert b.answers[group] == ["CANCELLED", "CANCELLED"]


def test_a_client_with_reply_space_gets_its_answers_when_its_rows_have_run_again() -> None:
    b = broker(workers=2)
    places = RegionPlaces([[0, 64]], [(4096, 64), (4160, 64)])
    group = b.ask(1, 1, frames=[], region=make_region(), places=places)
    ran = run_all(b, kills=killed_by((group, 1)))
    assert len(ran) == 4 - 1
    assert b.answers[group] == ["OK", "INTERNAL"]
