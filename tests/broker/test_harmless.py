"""What clients on this machine cannot do: be read while others change it, count forever, or have
the broker end for lack of descriptors."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from support.broker_builders import make_model, make_signature, make_target
from support.broker_loop import broker_loop
from support.descriptors import no_descriptors_leak
from support.local_fronts import LARGE, Fronts, fill
from support.virtual_arena import VirtualArena, floats, make_region
from support.virtual_broker import VirtualBroker

from batchyard.broker.worker_link import WorkerLink
from batchyard.wire import errors, protocol, work
from batchyard.wire.link import Link
from batchyard.wire.local import LocalSocket
from batchyard.wire.protocol import MessageType, RegionPlaces

FLOATS = make_signature((("x", "float32", (None, 2)),), (("y", "float32", (None,)),))


# What is read in place


def is_in_place(arena: VirtualArena) -> bool:
    batch = arena.tick_one()
    assert arena.gather(batch)[0].tolist() == floats(1, 2).tolist()
    return batch.layout.inputs[0].region is not None


@pytest.mark.parametrize("is_ours", [True, False])
def test_the_region_of_another_user_is_copied(is_ours: bool) -> None:
    """Its client could crash the worker by what it writes meanwhile."""
    arena = VirtualArena(FLOATS)
    region = replace(make_region(), is_ours=is_ours)
    arena.send(floats(1, 2), rows=[2], region=region, offsets=[[64]])
    assert is_in_place(arena) == is_ours


@pytest.mark.parametrize("timeout_s", [None, 1.0])
def test_a_request_with_a_deadline_is_copied(timeout_s: float | None) -> None:
    """Its caller goes on when the deadline is over, and may write to the array again."""
    arena = VirtualArena(FLOATS)
    arena.send(floats(1, 2), rows=[2], region=make_region(), offsets=[[64]], timeout_s=timeout_s)
    assert is_in_place(arena) == (timeout_s is None)


def test_one_deadline_in_a_batch_is_enough_to_copy_it() -> None:
    arena, region = VirtualArena(FLOATS), make_region()
    arena.send(floats(1), region=region, offsets=[[64]], timeout_s=1.0)
    arena.send(floats(2), region=region, offsets=[[72]])
    assert not is_in_place(arena)


@pytest.fixture
def fronts(tmp_path: Path) -> Iterator[Fronts]:
    with no_descriptors_leak(), ExitStack() as stack:
        yield Fronts(tmp_path, stack)


@pytest.mark.parametrize(
    ("uid", "is_ours"), [(os.geteuid(), True), (0, True), (os.geteuid() + 7, False)]
)
def test_whose_a_region_is(fronts: Fronts, uid: int, is_ours: bool) -> None:
    with mock.patch.object(LocalSocket, "peer_uid", return_value=uid):
        accepted, _ = fronts.connect(fronts.front())
    assert accepted.region is not None
    assert accepted.region.is_ours == is_ours


# What is counted


@pytest.mark.parametrize("frame", [b"x" * 4096, LARGE], ids=["inline", "in a memfd"])
def test_what_was_sent_waits_no_more(fronts: Fronts, frame: bytes) -> None:
    """A client that keeps up, but is always some answers behind, must not have to go."""
    front = fronts.front()
    accepted, client = fronts.connect(front)
    client.read()
    fill(front, accepted, [frame])
    for _ in range(5):
        assert front.send(accepted.key, b"more", [frame])
        before = len(accepted.unsent)
        while len(accepted.unsent) >= before:
            client.read()
            front.flush(accepted)
        assert accepted.unsent
        assert accepted.unsent_nbytes == len(accepted.unsent) * len(frame)
    while accepted.unsent:
        client.read()
        front.flush(accepted)
    assert accepted.unsent_nbytes == 0


def test_outputs_in_regions_say_nothing_of_their_size() -> None:
    b = VirtualBroker(make_model(max_batch_size=1))
    b.start_worker()
    group = b.ask(1)
    b.finish(b.tick_one(), output_nbytes=100_000)
    learned = group.lane.output_row_nbytes
    assert learned >= 100_000
    for _ in range(40):
        places = RegionPlaces([[0]], [(4096, 64)])
        b.ask(1, frames=[], region=make_region(), places=places)
        b.finish(b.tick_one(), output_nbytes=0, replied=True)
    assert group.lane.output_row_nbytes == learned
    # Those in the block do, also when they are small.
    for _ in range(40):
        b.ask(1)
        b.finish(b.tick_one(), output_nbytes=8)
    assert group.lane.output_row_nbytes < learned


# Without descriptors


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """This process cannot open another one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Whatever number is free is beyond it.
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Epoll:
    """Takes note of nothing."""

    def modify(self, fd: int, mask: int) -> None: ...


@pytest.fixture
def ends() -> Iterator[tuple[WorkerLink, Link]]:
    ours, theirs = Link.pair()
    for end in (ours, theirs):
        end.set_blocking(False)
    epoll: Any = Epoll()
    link = WorkerLink(0, 0, 1, "cpu", 1, ours, epoll)
    yield link, theirs
    link.close()
    theirs.close()


LONG = [2, b"x" * 1_000_000]


def test_a_long_packet_without_descriptors_raises(ends: tuple[WorkerLink, Link]) -> None:
    link, worker = ends
    with no_descriptors(), pytest.raises(OSError, match="Too many open files"):
        link.send(LONG, [])
    assert not link.unsent
    link.send(LONG, [])
    assert worker.receive()[0] == LONG


def test_a_region_that_could_not_be_told_is_told_next_time(ends: tuple[WorkerLink, Link]) -> None:
    link, _ = ends
    while not link.unsent:
        link.send([0, b"x" * 10_000], [])
    with open(os.devnull) as file:
        with no_descriptors(), pytest.raises(OSError, match="Too many open files"):
            link.attach(5, file.fileno())
        assert (len(link.unsent), link.regions) == (1, set())
        link.attach(5, file.fileno())
    assert (len(link.unsent), link.regions) == (2, {5})


def test_a_long_packet_waits_until_there_are_descriptors(ends: tuple[WorkerLink, Link]) -> None:
    link, worker = ends
    while not link.unsent:
        link.send([0, b"x" * 10_000], [])
    link.send(LONG, [])
    with contextlib.suppress(BlockingIOError):
        while True:
            worker.receive()
    with no_descriptors():
        link.flush()
    assert link.unsent
    link.flush()
    assert [worker.receive()[0][0] for _ in range(2)] == [0, 2]


def predict(message_id: int) -> bytes:
    return protocol.encode_predict(message_id, make_target(), 1, None, RegionPlaces([[0]], None))


@pytest.mark.parametrize("what", ["attach", "send"])
def test_a_batch_that_cannot_be_sent_fails_and_the_next_runs(tmp_path: Path, what: str) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with no_descriptors_leak(), broker_loop(tmp_path) as loop:
        worker, client = loop.worker(), loop.client()
        with mock.patch.object(WorkerLink, what, full):
            for message_id in (1, 2):
                client.send(predict(message_id))
                type_, body, _ = client.receive()
                assert type_ is MessageType.ERROR
                failure = protocol.decode_error(body)
                assert failure.segments == [(message_id, 0, 1)]
                assert failure.number == errors.ResourceExhausted.number
        client.send(predict(3))
        assert worker.receive()[0] == work.Kind.ATTACH
        execute = worker.execute()
        worker.done(execute, [("y", "float32", (1, 16), execute.output_offset, 64)])
        assert client.receive()[0] is MessageType.RESULT
        assert loop.is_running
