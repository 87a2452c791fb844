"""Requests that kill workers, in virtual time: each is found out, and the others are answered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from support.broker_builders import make_model, make_report
from support.poison import requests_of, run_all
from support.virtual_books import Request
from support.virtual_broker import VirtualBroker

from batchyard.broker.events import Batch
from batchyard.wire.errors import InvalidArgument


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


def lose_and_reap(b: VirtualBroker, worker: int) -> None:
    b.lose(worker)
    b.reap(worker, comes_back=True, why="signal 9")


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("culprit", [0, 5, 7])
def test_a_row_that_kills_costs_two_deaths_and_nobody_else_an_answer(
    workers: int, culprit: int
) -> None:
    b = broker(workers=workers, max_batch_size=8)
    group = b.ask(*[1] * 8)
    ran = run_all(b, kills=killed_by((group, culprit)))
    expected = ["OK"] * 8
    expected[culprit] = "INTERNAL"
    assert b.answers[group] == expected
    assert b.messages == [
        "model 'm': the worker died while it ran this (it died), alone, as another had before; "
        "it is not tried again"
    ]
    assert sum(killed_by((group, culprit))(batch) for batch in ran) == 2


def test_a_row_that_was_alone_from_the_start_costs_two_deaths_too() -> None:
    b = broker()
    group = b.ask(1)
    assert len(run_all(b, kills=killed_by((group, 0)))) == 2
    assert b.answers[group] == ["INTERNAL"]


def test_several_rows_that_kill_are_all_found() -> None:
    b = broker(workers=2, max_batch_size=8)
    group, other = b.ask(*[1] * 8), b.ask(*[1] * 16, client=b"other")
    poison = {(group, 1), (group, 6), (other, 3)}
    ran = run_all(b, kills=killed_by(*poison))
    for asked in (group, other):
        assert b.answers[asked] == [
            "INTERNAL" if (asked, i) in poison else "OK" for i in range(asked.count)
        ]
    # Two of them died together first.
    assert sum(killed_by(*poison)(batch) for batch in ran) == 5


def test_when_the_worker_that_is_set_apart_dies_by_another_cause_the_others_are_answered() -> None:
    b = broker(workers=2)
    group = b.ask(*[1] * 4)
    b.die(b.tick_one().worker_id)
    suspect = b.tick_one()
    b.finish(suspect)
    # It dies with nothing to run.
    b.die(suspect.worker_id)
    run_all(b)
    assert b.answers[group] == ["OK"] * 4


def test_a_suspect_that_raises_gets_its_error() -> None:
    b = broker()
    group = b.ask(1, 1)
    b.die(b.tick_one().worker_id)
    run_all(b, {(group, 0): InvalidArgument("bad")})
    assert b.answers[group] == ["INVALID_ARGUMENT", "OK"]


def test_a_suspect_that_is_given_up_is_not_run() -> None:
    b = broker(workers=2)
    group = b.ask(*[1] * 3)
    b.die(b.tick_one().worker_id)
    first = b.tick_one()
    b.cancel(group, 1, 1)
    b.finish(first)
    assert requests_of(b.tick_one()) == [(group, 2)]
    b.leave(b"c")
    run_all(b)
    later = b.ask(*[1] * 8, client=b"later")
    assert len(b.tick()) == 2
    run_all(b)
    assert b.answers[later] == ["OK"] * 8


def test_requests_of_several_rows_stay_whole() -> None:
    b = broker(max_batch_size=8)
    group = b.ask(3, 2, 3)
    ran = run_all(b, kills=killed_by((group, 1)))
    assert b.answers[group] == ["OK", "INTERNAL", "OK"]
    assert [batch.rows for batch in ran] == [8, 3, 2, 3]


@pytest.mark.parametrize("concurrent_batches", [1, 2])
def test_pieces_of_a_large_request_are_found_out_too(concurrent_batches: int) -> None:
    b = broker(workers=2, concurrent_batches=concurrent_batches)
    large, other = b.ask(11), b.ask(1, client=b"other")
    run_all(b, kills=lambda batch: any(part.row_start == 4 for part in batch.parts))
    assert b.answers[large] == ["INTERNAL"]
    assert b.answers[other] == ["OK"]


def test_one_death_with_two_pieces_of_a_request_is_one_death() -> None:
    b = broker(concurrent_batches=2)
    group = b.ask(8)
    assert len(b.tick()) == 2
    b.die(0)
    assert b.answers[group] == [None]
    run_all(b)
    assert b.answers[group] == ["OK"]


@pytest.mark.parametrize("made", [{"retry": False}, {"stateful": True}])
def test_where_nothing_may_run_twice_what_ran_is_unavailable(made: dict[str, Any]) -> None:
    b = broker(**made)
    running, ahead = b.ask(*[1] * 4), b.ask(*[1] * 4)
    b.tick()
    lose_and_reap(b, 0)
    assert b.answers[running] == ["UNAVAILABLE"] * 4
    words = "the worker died while it ran this (signal 9); it is not tried again"
    assert words in b.messages[-1]
    # What was ahead never ran.
    b.start_worker(make_report(stateful="stateful" in made), slot=0)
    run_all(b)
    assert b.answers[ahead] == ["OK"] * 4


def test_the_last_worker_is_spared_while_another_is_on_its_way() -> None:
    b = VirtualBroker(make_model())
    b.start_worker(slot=0)
    b.start_worker(slot=1)
    group = b.ask(1, 1)
    batch = b.tick_one()
    b.lose(batch.worker_id)
    b.reap(batch.worker_id, comes_back=True)
    assert not b.tick(1.0)
    assert b.state.next_wakeup() <= b.now + 30
    # But not for ever: the other may never come.
    (first,) = b.tick(30.0)
    b.finish(first)
    b.finish(b.tick_one())
    assert b.answers[group] == ["OK", "OK"]


def test_suspects_run_when_the_other_has_come() -> None:
    b = VirtualBroker(make_model())
    b.start_worker(slot=0)
    b.start_worker(slot=1)
    group = b.ask(1, 1)
    b.die(b.tick_one().worker_id)
    b.finish(b.tick_one())
    b.finish(b.tick_one())
    assert b.answers[group] == ["OK", "OK"]
