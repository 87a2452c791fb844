"""The broker's loop between a supervisor, workers and clients when one of them ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from support.broker_builders import make_parameters
from support.broker_loop import LocalEnd, LoopInThread, broker_loop
from support.descriptors import no_descriptors_leak
from support.loop_talk import ask, done, error_of, result_of
from support.waiting import wait_until

from batchyard.broker.worker_link import WorkerLink
from batchyard.wire import control, errors, protocol, work
from batchyard.wire.errors import InvalidArgument
from batchyard.wire.link import LinkClosed
from batchyard.wire.protocol import MessageType

TIMEOUT_S = 0.05


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[LoopInThread]:
    with no_descriptors_leak(), broker_loop(tmp_path, timeout_s=TIMEOUT_S) as made:
        yield made


@pytest.fixture
def patient(tmp_path: Path) -> Iterator[LoopInThread]:
    """No batch runs too long."""
    with no_descriptors_leak(), broker_loop(tmp_path) as made:
        yield made


def models(*versions: tuple[int, bool]) -> list[dict[str, Any]]:
    batching = asdict(make_parameters())
    return [
        asdict(control.ModelSettings("m", version, [], batching, is_current))
        for version, is_current in versions
    ]


# Workers that die


def test_what_a_worker_said_last_is_heard(patient: LoopInThread) -> None:
    """The supervisor may know that it has ended before the broker has read its last words."""
    worker, client = patient.worker(), patient.client()
    ask(client, 1)
    execute = worker.execute()
    done(worker, execute)
    worker.close()
    patient.reap(0)
    assert result_of(client) == [(1, 0, 1)]


def test_what_it_ran_runs_again_when_it_is_reaped(patient: LoopInThread) -> None:
    workers, client = [patient.worker(0), patient.worker(1)], patient.client()
    ask(client, 1, rows=2)
    workers[0].execute()
    workers[0].close()
    wait_until(lambda: 0 not in patient.loop.state.workers, "the loss is noticed")
    assert workers[1].hears_nothing()
    patient.reap(0, comes_back=False)
    for request in range(2):
        suspect = workers[1].execute()
        assert (suspect.rows, suspect.origins) == (1, [(1, request, 1, request, 1)])
        done(workers[1], suspect)
        assert result_of(client) == [(1, request, 1)]


def test_the_next_worker_of_the_slot_gets_what_waited(patient: LoopInThread) -> None:
    worker, client = patient.worker(0), patient.client()
    worker.close()
    patient.reap(0)
    wait_until(lambda: not patient.loop.state.workers, "the worker is gone")
    ask(client, 1)
    worker = patient.worker(5, slot=0, restarts=1)
    done(worker, worker.execute())
    assert result_of(client) == [(1, 0, 1)]


def test_without_a_worker_to_come_requests_are_refused(patient: LoopInThread) -> None:
    worker, client = patient.worker(0), patient.client()
    ask(client, 1)
    worker.execute()
    worker.close()
    patient.reap(0, comes_back=False)
    failure = error_of(client)
    assert (failure.number, failure.segments) == (errors.Unavailable.number, [(1, 0, 1)])
    ask(client, 2)
    assert "no worker left" in error_of(client).message


def test_a_batch_that_raised_is_split(patient: LoopInThread) -> None:
    worker, client = patient.worker(), patient.client()
    ask(client, 1, rows=2)
    worker.failed(worker.execute(), InvalidArgument("bad row"))
    for request, bad in ((0, True), (1, False)):
        execute = worker.execute()
        assert execute.origins == [(1, request, 1, request, 1)]
        if bad:
            worker.failed(execute, InvalidArgument("bad row"))
        else:
            done(worker, execute)
    assert error_of(client).segments == [(1, 0, 1)]
    assert result_of(client) == [(1, 1, 1)]


def test_halves_of_a_batch_that_could_not_be_sent_do_not_wait_for_ever(
    patient: LoopInThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = WorkerLink.send
    refused: list[Any] = []

    def once(link: WorkerLink, packet: list[Any], fds: list[int]) -> None:
        if packet[0] == work.Kind.EXECUTE and not refused:
            refused.append(packet)
            raise OSError(24, "Too many open files")
        send(link, packet, fds)

    monkeypatch.setattr(WorkerLink, "send", once)
    worker, client = patient.worker(), patient.client()
    ask(client, 1, rows=2)
    for request in range(2):
        done(worker, worker.execute())
        assert result_of(client) == [(1, request, 1)]


# Workers that hang


def test_the_supervisor_is_told_who_hangs(loop: LoopInThread) -> None:
    worker, client = loop.worker(), loop.client()
    ask(client, 1)
    worker.execute()
    packet = loop.told()
    assert packet[:2] == [control.Kind.HUNG, 0]
    assert "batch_execution_timeout = 0.05 s" in packet[2]
    # It is heard no more, and its slot's next worker gets what it ran.
    assert loop.loop.workers[0].state == "FAILED"
    loop.reap(0, packet[2])
    worker = loop.worker(1, slot=0)
    done(worker, worker.execute())
    assert result_of(client) == [(1, 0, 1)]


def test_a_request_that_always_hangs_is_answered(loop: LoopInThread) -> None:
    client = loop.client()
    for worker_id in range(2):
        worker = loop.worker(worker_id, slot=0)
        if not worker_id:
            ask(client, 1)
        worker.execute()
        loop.reap(worker_id, loop.told()[2])
    failure = error_of(client)
    assert failure.number == errors.Internal.number
    assert "longer than batch_execution_timeout" in failure.message


# Workers that retire, and versions


def test_a_worker_retires_when_it_has_nothing(patient: LoopInThread) -> None:
    worker, client = patient.worker(), patient.client()
    ask(client, 1)
    execute = worker.execute()
    patient.supervisor.send([control.Kind.RETIRE, 0])
    new = patient.worker(1, slot=0)
    ask(client, 2)
    done(new, new.execute())
    assert result_of(client) == [(2, 0, 1)]
    assert worker.hears_nothing()
    done(worker, execute)
    assert result_of(client) == [(1, 0, 1)]
    assert patient.told() == [control.Kind.RETIRED, 0]
    # Its link is closed: that is how it hears of it.
    with pytest.raises(LinkClosed):
        worker.receive()


def test_a_worker_that_is_not_ready_retires_at_once(patient: LoopInThread) -> None:
    patient.attach(3)
    patient.supervisor.send([control.Kind.RETIRE, 3])
    assert patient.told() == [control.Kind.RETIRED, 3]


def test_a_version_is_unloaded_when_its_last_request_is_answered(patient: LoopInThread) -> None:
    patient.supervisor.send([control.Kind.MODELS, models((1, True), (2, False))])
    worker, client = patient.worker(versions=(1, 2)), patient.client()
    ask(client, 1)
    execute = worker.execute()
    assert execute.version == 1
    patient.supervisor.send([control.Kind.MODELS, models((2, True))])
    wait_until(lambda: patient.loop.state.catalog.models["m", 2].is_current, "it switches")
    assert worker.hears_nothing()
    ask(client, 2)
    done(worker, execute)
    assert result_of(client) == [(1, 0, 1)]
    packets = [worker.receive(), worker.receive()]
    assert [work.Kind.UNLOAD, "m", 1] in packets
    (batch,) = [packet for packet in packets if packet[0] == work.Kind.EXECUTE]
    assert work.Execute.from_wire(batch).version == 2
    assert patient.told() == [control.Kind.UNLOADED, "m", 1]


# Drain


def test_all_clients_on_this_machine_hear_that_it_drains(patient: LoopInThread) -> None:
    worker, clients = patient.worker(), [patient.client() for _ in range(2)]
    ask(clients[0], 1)
    execute = worker.execute()
    patient.supervisor.send([control.Kind.DRAIN])
    for client in clients:
        assert client.receive()[:2] == (MessageType.DRAINING, [])
    ask(clients[1], 1)
    assert clients[1].receive()[0] is MessageType.DRAINING
    assert error_of(clients[1]).number == errors.Unavailable.number
    done(worker, execute)
    assert result_of(clients[0]) == [(1, 0, 1)]
    assert patient.told() == [control.Kind.DRAINED]


# What the status shows


def stats(client: LocalEnd) -> dict[str, Any]:
    client.send(protocol.encode(MessageType.QUERY, [7, "stats", {}]))
    type_, body, _ = client.receive()
    assert (type_, body[:2]) == (MessageType.ANSWER, [7, 0])
    answer: dict[str, Any] = body[3]
    return answer


def states(client: LocalEnd) -> list[tuple[int, str, int]]:
    return [(w["id"], w["state"], w["restarts"]) for w in stats(client)["workers"]]


def test_the_status_shows_the_process_of_each_slot(patient: LoopInThread) -> None:
    client = patient.client()
    first = patient.worker(0)
    patient.worker(1)
    assert states(client) == [(0, "READY", 0), (1, "READY", 0)]
    ask(client, 1)
    execute = first.execute()
    assert states(client) == [(0, "BUSY", 0), (1, "READY", 0)]
    done(first, execute)
    result_of(client)
    first.close()
    wait_until(lambda: 0 not in patient.loop.state.workers, "the loss is noticed")
    assert states(client) == [(0, "FAILED", 0), (1, "READY", 0)]
    patient.reap(0)
    patient.attach(2, slot=0, restarts=1)
    wait_until(lambda: 2 in patient.loop.workers, "the next is there")
    assert states(client) == [(0, "STARTING", 1), (1, "READY", 0)]
    assert stats(client)["broker"]["pid"] == os.getpid()


def test_while_one_process_replaces_another_the_one_that_serves_is_shown(
    patient: LoopInThread,
) -> None:
    client = patient.client()
    patient.worker(0)
    new = patient.attach(1, slot=0)
    wait_until(lambda: 1 in patient.loop.workers, "it is there")
    assert states(client) == [(0, "READY", 0)]
    new.ready()
    patient.hears_ready(1)
    patient.supervisor.send([control.Kind.RETIRE, 0])
    assert patient.told() == [control.Kind.RETIRED, 0]
    patient.reap(0)
    ready = [w for w in patient.loop.workers.values() if w.state == "READY"]
    assert [w.id for w in ready] == [1]
    assert states(client) == [(0, "READY", 0)]
