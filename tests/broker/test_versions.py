"""Versions and parameters that change while the broker serves, in virtual time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from support.broker_builders import make_model, make_ready, make_report, make_target
from support.poison import run_all
from support.virtual_broker import VirtualBroker

from batchyard.broker import events
from batchyard.broker.catalog import ServedModel
from batchyard.wire.errors import BatchyardError, InvalidArgument, NotFound, Unavailable

Versions = Iterable[tuple[int, bool]]


def models(*versions: tuple[int, bool], **parameters: Any) -> list[ServedModel]:
    """Versions of ``m``, each with whether it is current."""
    return [make_model(version=n, is_current=current, **parameters) for n, current in versions]


def change(b: VirtualBroker, *versions: tuple[int, bool], **parameters: Any) -> None:
    b.handle(events.ModelsChanged(models(*versions, **parameters)))


def broker(
    *versions: tuple[int, bool], workers: int = 1, loaded: Iterable[int] = (1, 2), **parameters: Any
) -> VirtualBroker:
    made = VirtualBroker(*models(*versions, **parameters))
    reports = [make_report(version=version) for version in loaded]
    for _ in range(workers):
        made.start_worker(*reports)
    return made


def version_of(b: VirtualBroker, target: bytes | None = None) -> int:
    return b.ask(1, target=target).lane.model.version


# Which version is meant


def test_requests_without_a_version_get_the_current_one() -> None:
    b = broker((1, True), (2, False))
    assert version_of(b) == 1
    assert version_of(b, make_target(version=2)) == 2
    change(b, (1, False), (2, True))
    # All at once: no target is remembered by its old version.
    assert version_of(b) == 2
    assert version_of(b, make_target(version=1)) == 1


def test_versions_do_not_share_batches() -> None:
    b = broker((1, True), (2, False), workers=2)
    b.ask(1)
    b.ask(1, target=make_target(version=2))
    assert sorted(batch.lane.model.version for batch in b.tick()) == [1, 2]


def test_when_none_is_current_the_latest_is_meant() -> None:
    assert version_of(broker((1, False), (2, False))) == 2


def test_a_label_moves_with_the_configuration() -> None:
    b = VirtualBroker(make_model(labels=("stable",)), make_model(version=2, labels=("canary",)))
    b.start_worker(make_report(), make_report(version=2))
    assert version_of(b, make_target(label="stable")) == 1
    b.handle(events.ModelsChanged([make_model(labels=()), make_model(version=2)]))
    assert version_of(b, make_target(label="stable")) == 2


@pytest.mark.parametrize(
    ("target", "error", "words"),
    [
        (
            make_target(version=3),
            NotFound,
            "model 'm' has no version 3 here; versions 1, 2 are served",
        ),
        (make_target(label="x"), InvalidArgument, "'x'; labels are 'stable', 'stable'"),
        (make_target(model="n"), NotFound, "model 'n' is not served here; served are 'm'"),
    ],
)
def test_what_is_not_served_is_told_with_what_is(
    target: bytes, error: type[BatchyardError], words: str
) -> None:
    b = broker((1, True), (2, False))
    with pytest.raises(error) as caught:
        b.ask(1, target=target)
    assert words in caught.value.message


def test_a_version_that_does_not_load_says_why_and_the_others_serve() -> None:
    b = VirtualBroker(make_model(), make_model(version=2, is_current=False, error="no such op"))
    b.start_worker()
    assert version_of(b) == 1
    with pytest.raises(Unavailable, match="version 2 cannot be served: no such op"):
        b.ask(1, target=make_target(version=2))
    assert [model.state for model in b.catalog.models.values()] == ["AVAILABLE", "END"]


def test_a_version_that_is_not_loaded_yet_says_so() -> None:
    b = broker((1, True), (2, False), loaded=[1])
    with pytest.raises(Unavailable, match="version 2 is still loading"):
        b.ask(1, target=make_target(version=2))


# A version that goes


def test_a_retired_version_takes_no_more_and_answers_what_it_took() -> None:
    b = broker((1, True), (2, False))
    running, waits = b.ask(*[1] * 4), b.ask(1)
    batch = b.tick_one()
    change(b, (2, True))
    assert b.unloaded == []
    assert b.catalog.models["m", 1].state == "UNLOADING"
    with pytest.raises(NotFound, match="no version 1 here; version 2 is served"):
        b.ask(1, target=make_target(version=1))
    b.finish(batch)
    assert b.unloaded == []
    b.finish(b.tick_one())
    assert b.answers[running] + b.answers[waits] == ["OK"] * 5
    assert b.unloaded == [("m", 1)]
    assert list(b.catalog.models) == [("m", 2)]


def test_a_retired_version_that_has_nothing_goes_at_once() -> None:
    b = broker((1, True), (2, False))
    change(b, (2, True))
    assert b.unloaded == [("m", 1)]
    change(b, (2, True))
    assert b.unloaded == [("m", 1)]


@pytest.mark.parametrize("ends", ["cancel", "leave", "expire", "fail"])
def test_a_retired_version_goes_when_nobody_waits_any_more(ends: str) -> None:
    b = broker((1, True), (2, False), retry=False)
    b.ask(1, target=make_target(version=2))
    busy = b.tick_one()
    group = b.ask(1, timeout_s=1.0)
    change(b, (2, True))
    if ends == "cancel":
        b.cancel(group)
    elif ends == "leave":
        b.leave(b"c")
    elif ends == "expire":
        b.tick(1.0)
    else:
        b.finish(busy)
        b.fail(b.tick_one())
    assert b.unloaded == [("m", 1)]


def test_what_runs_again_keeps_a_retired_version() -> None:
    b = broker((1, True), (2, False))
    group = b.ask(1, 1)
    batch = b.tick_one()
    change(b, (2, True))
    b.fail(batch, InvalidArgument("bad"))
    assert b.unloaded == []
    run_all(b, {(group, 1): InvalidArgument("bad")})
    assert b.answers[group] == ["OK", "INVALID_ARGUMENT"]
    assert b.unloaded == [("m", 1)]


@pytest.mark.parametrize("lost_first", [True, False])
def test_what_was_on_a_lost_worker_keeps_a_retired_version(lost_first: bool) -> None:
    b = broker((1, True), (2, False), workers=2)
    group = b.ask(1, 1)
    batch = b.tick_one()
    if lost_first:
        b.lose(batch.worker_id)
    change(b, (2, True))
    if not lost_first:
        b.lose(batch.worker_id)
    assert b.unloaded == []
    b.reap(batch.worker_id)
    run_all(b)
    assert b.answers[group] == ["OK", "OK"]
    assert b.unloaded == [("m", 1)]


def test_what_a_broker_before_still_runs_keeps_a_retired_version() -> None:
    before = broker((1, True), (2, False), workers=2)
    group = before.ask(1, 1, message_id=1 << 50)
    batch = before.tick_one()
    b = before.restart()
    b.resume_all(before)
    again = b.resend(group)
    change(b, (2, True))
    assert b.unloaded == []
    b.fail_orphan(batch.id, InvalidArgument("bad"))
    run_all(b, {(again, 0): InvalidArgument("bad")})
    assert b.answers[again] == ["INVALID_ARGUMENT", "OK"]
    assert b.unloaded == [("m", 1)]


@pytest.mark.parametrize("runs", [True, False])
def test_requests_of_a_retired_version_that_lost_its_last_worker_are_refused(runs: bool) -> None:
    b = broker((1, True), (2, False))
    b.ask(*[1] * 4)
    b.tick()
    group = b.ask(1, client=b"waits")
    if not runs:
        b.finish(b.running[min(b.running)])
    change(b, (2, True))
    b.lose(0)
    b.reap(0, comes_back=True)
    # The next process loads what is served from now on.
    b.start_worker(make_report(version=2), slot=0)
    b.tick(100.0)
    assert b.answers[group] == ["UNAVAILABLE"]
    assert b.is_all_answered
    assert b.unloaded == [("m", 1)]


def test_a_version_that_comes_back_before_it_went_stays() -> None:
    b = broker((1, True), (2, False))
    waits = b.ask(*[1] * 4)
    batch = b.tick_one()
    change(b, (2, True))
    change(b, (1, True), (2, False))
    later = b.ask(1)
    assert later.lane.model is waits.lane.model
    b.finish(batch)
    run_all(b)
    assert b.answers[later] == ["OK"]
    assert b.unloaded == []


def test_a_version_that_comes_back_after_it_went_is_loading() -> None:
    b = broker((1, True), (2, False))
    change(b, (2, True))
    change(b, (1, True), (2, False))
    with pytest.raises(Unavailable, match="version 1 is still loading"):
        b.ask(1)
    b.start_worker(make_report(), make_report(version=2))
    b.ask(1)
    assert b.tick_one().worker_id == 1


def test_a_worker_that_loaded_what_went_meanwhile_forgets_it() -> None:
    b = broker((1, True), (2, False))
    change(b, (2, True))
    ready = make_ready(make_report(), make_report(version=2))
    (unload,) = b.state.handle(events.WorkerReady(9, 1, ready, 9), b.now)
    assert unload == events.Unload("m", 1)


def test_a_model_that_is_taken_out_of_the_configuration_is_not_found() -> None:
    b = VirtualBroker(make_model("m"), make_model("n"))
    b.start_worker(make_report(name="m"), make_report(name="n"))
    b.handle(events.ModelsChanged([make_model("n")]))
    with pytest.raises(NotFound, match="'m' is not served here; served are 'n'"):
        b.ask(1)
    assert b.unloaded == [("m", 1)]


# Parameters that change


@pytest.mark.parametrize(("before", "after"), [(4, 2), (2, 4)])
def test_what_waits_when_the_batch_size_changes_goes_as_it_came(before: int, after: int) -> None:
    b = broker((1, True), loaded=[1], max_batch_size=before)
    b.ask(1)
    running = b.tick_one()
    # Of requests and of pieces, by the old size.
    waits = b.ask(1, 1, before, 2 * before + 1)
    change(b, (1, True), max_batch_size=after)
    new = b.ask(1, 1, 1, 2 * after + 1)
    assert new.lane is not waits.lane
    b.finish(running)
    sizes = [(batch.lane, batch.rows) for batch in run_all(b)]
    assert max(rows for lane, rows in sizes if lane is waits.lane) == before
    assert max(rows for lane, rows in sizes if lane is new.lane) == after
    assert b.is_all_answered


def test_what_waits_when_the_allowed_sizes_change_is_padded_to_the_old_ones() -> None:
    b = broker((1, True), loaded=[1], allowed_batch_sizes=(2, 4))
    b.ask(1)
    running = b.tick_one()
    waits = b.ask(1)
    change(b, (1, True), allowed_batch_sizes=(3,), max_batch_size=3)
    b.ask(1)
    b.finish(running)
    padded = {batch.lane is waits.lane: batch.layout.padded_rows for batch in run_all(b)}
    assert padded == {True: 2, False: 3}


def test_halves_keep_the_sizes_that_they_came_by() -> None:
    b = broker((1, True), loaded=[1], allowed_batch_sizes=(2, 8), max_batch_size=8)
    group = b.ask(*[1] * 8)
    batch = b.tick_one()
    change(b, (1, True), allowed_batch_sizes=(1,), max_batch_size=1)
    b.fail(batch, InvalidArgument("bad"))
    assert [batch.layout.padded_rows for batch in run_all(b)] == [8, 8]
    assert b.answers[group] == ["OK"] * 8


def test_the_bound_on_threads_holds_from_now_on() -> None:
    b = broker((1, True), loaded=[1], workers=4)
    b.ask(*[1] * 8)
    assert len(b.tick()) == 2
    change(b, (1, True), num_batch_threads=2)
    b.ask(*[1] * 8)
    assert b.tick() == []
    b.finish(b.running[min(b.running)])
    assert len(b.tick()) == 1


def test_batching_may_be_switched_off_and_on() -> None:
    b = broker((1, True), loaded=[1])
    change(b, (1, True), enable_batching=False)
    with pytest.raises(InvalidArgument, match="never batched"):
        b.ask(1, 1)
    target = make_target(("x", "float32", (3, 16)))
    whole = b.ask(3, target=target, frames=[bytes(3 * 64)], whole=True)
    change(b, (1, True))
    rows = b.ask(1, 1)
    run_all(b)
    assert b.answers[whole] + b.answers[rows] == ["OK"] * 3


def test_whether_requests_may_run_twice_holds_for_what_runs() -> None:
    b = broker((1, True), loaded=[1])
    group = b.ask(1, 1)
    batch = b.tick_one()
    change(b, (1, True), retry=False)
    b.fail(batch, InvalidArgument("bad"))
    assert b.answers[group] == ["INVALID_ARGUMENT"] * 2
