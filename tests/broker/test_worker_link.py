"""The broker's end of a worker's link: packets wait in order, regions are told once."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator

import pytest
from support.descriptors import no_descriptors_leak

from batchyard.broker.worker_link import WorkerLink
from batchyard.wire import arena, work
from batchyard.wire.link import Link, LinkClosed


class Ends:
    """A worker's link as the broker has it, and the worker's end."""

    def __init__(self) -> None:
        self.epoll = select.epoll()
        ours, self.worker = Link.pair()
        ours.set_blocking(False)
        self.worker.set_blocking(False)
        self.link = WorkerLink(0, 0, 1, "cpu", 1, ours, self.epoll)
        self.epoll.register(ours.fileno(), select.EPOLLIN)
        self.fd = arena.create_memfd(64, "test-region")

    def received(self) -> list[int]:
        """The kinds of all packets that wait; descriptors that came are closed."""
        kinds: list[int] = []
        while True:
            try:
                packet, fds = self.worker.receive()
            except BlockingIOError:
                return kinds
            kinds.append(packet[0])
            for fd in fds:
                assert os.path.samestat(os.fstat(fd), os.fstat(self.fd))
                os.close(fd)

    def fill(self) -> int:
        """Sends until packets wait; how many that took."""
        sent = 0
        while not self.link.unsent:
            self.link.send([0, b"x" * 10_000], [])
            sent += 1
        return sent

    def close(self) -> None:
        self.link.close()
        self.worker.close()
        self.epoll.close()
        os.close(self.fd)


@pytest.fixture
def ends() -> Iterator[Ends]:
    with no_descriptors_leak():
        made = Ends()
        yield made
        made.close()


def test_a_region_is_told_once_until_it_goes(ends: Ends) -> None:
    for _ in range(2):
        ends.link.attach(5, ends.fd)
    assert ends.received() == [work.Kind.ATTACH]
    for _ in range(2):
        ends.link.detach(5)
    assert ends.received() == [work.Kind.DETACH]
    ends.link.detach(6)
    assert ends.received() == []


def test_what_finds_no_room_waits_in_order_with_its_descriptors(ends: Ends) -> None:
    sent = ends.fill()
    ends.link.attach(5, ends.fd)
    ends.link.send([1], [])
    ends.link.detach(5)
    ends.link.attach(5, ends.fd)
    assert len(ends.link.unsent) == 5
    kinds: list[int] = []
    while ends.link.unsent:
        kinds += ends.received()
        assert ends.epoll.poll(0) == [(ends.link.link.fileno(), select.EPOLLOUT)]
        ends.link.flush()
    kinds += ends.received()
    assert kinds == [0] * sent + [
        work.Kind.ATTACH,
        1,
        work.Kind.DETACH,
        work.Kind.ATTACH,
    ]
    assert ends.epoll.poll(0) == []


def test_what_waits_for_a_worker_that_is_gone_is_dropped(ends: Ends) -> None:
    ends.fill()
    ends.link.attach(5, ends.fd)
    ends.worker.close()
    with pytest.raises(LinkClosed):
        ends.link.flush()
    with no_descriptors_leak():
        ends.link.close()


def test_a_worker_that_is_gone_is_sent_nothing(ends: Ends) -> None:
    ends.worker.close()
    ends.link.attach(5, ends.fd)
    ends.link.detach(5)
    assert not ends.link.unsent


def test_a_link_that_is_closed_is_sent_nothing(ends: Ends) -> None:
    ends.link.attach(5, ends.fd)
    ends.link.close()
    ends.link.detach(5)
