"""Answers to clients on this machine: to those who read, those who do not, and at the end."""

from __future__ import annotations

import os
import resource
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.descriptors import no_descriptors_leak
from support.local_fronts import LARGE, REGION_NBYTES, WELCOME, Client, Fronts, fill
from support.waiting import DEADLINE_S

from batchyard.broker import local_front
from batchyard.broker.local_front import LocalFront
from batchyard.wire import local
from batchyard.wire.access import Access
from batchyard.wire.local import INLINE_NBYTES


@pytest.fixture
def fronts(tmp_path: Path) -> Iterator[Fronts]:
    with no_descriptors_leak():
        with ExitStack() as stack:
            yield Fronts(tmp_path, stack)
        # No path either.
        assert list(tmp_path.iterdir()) == []


# Answers


@pytest.mark.parametrize("frames", [[], [b""], [b"x" * INLINE_NBYTES], [LARGE], [LARGE, b"end"]])
def test_answers_of_any_size(fronts: Fronts, frames: list[bytes]) -> None:
    front = fronts.front()
    accepted, client = fronts.connect(front)
    client.read()
    with no_descriptors_leak():
        assert front.send(accepted.key, b"answer", frames)
        assert client.read() == (b"answer", frames)
    assert not accepted.unsent


@pytest.mark.parametrize("frame", [b"x" * 4096, LARGE], ids=["inline", "in a memfd"])
def test_who_reads_late_gets_all_in_order(fronts: Fronts, frame: bytes) -> None:
    front = fronts.front()
    accepted, client = fronts.connect(front)
    client.read()
    sent = fill(front, accepted, [frame])
    assert fronts.epoll.poll(0) == []
    seen: list[int] = []
    while len(seen) < sent:
        for fd, mask in fronts.epoll.poll(0):
            assert (fd, mask) == (accepted.fileno(), select.EPOLLOUT)
            front.flush(accepted)
        header, frames = client.read()
        assert frames == [frame]
        seen.append(int(header))
    assert seen == list(range(sent))
    # Woken no more.
    assert fronts.epoll.poll(0) == []
    assert not accepted.unsent


def test_what_waits_may_change_afterwards(fronts: Fronts) -> None:
    front = fronts.front()
    accepted, client = fronts.connect(front)
    fill(front, accepted, [b"x" * 4096])
    memory = bytearray(b"answer")
    assert front.send(accepted.key, b"last", [memory])
    memory[:] = b"CHANGE"
    found = b""
    client.read()
    while found != b"last":
        front.flush(accepted)
        found, frames = client.read()
    assert frames == [b"answer"]


def test_who_does_not_read_at_all_has_to_go(
    fronts: Fronts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_front, "HIGH_WATER_MARK", 5)
    front = fronts.front()
    accepted, _ = fronts.connect(front)
    fill(front, accepted, [LARGE])
    answers = [front.send(accepted.key, b"more", [LARGE]) for _ in range(3)]
    assert answers == [True, False, False]
    with no_descriptors_leak():
        front.drop(accepted)
    assert not front.knows(accepted.key)


@pytest.mark.parametrize("frame", [b"small", LARGE], ids=["inline", "in a memfd"])
def test_who_is_gone_is_answered_into_the_void(fronts: Fronts, frame: bytes) -> None:
    front = fronts.front()
    accepted, client = fronts.connect(front)
    client.close()
    with no_descriptors_leak():
        front.send(accepted.key, b"answer", [frame])
    assert not accepted.unsent


def test_who_goes_while_answers_wait(fronts: Fronts) -> None:
    front = fronts.front()
    accepted, client = fronts.connect(front)
    fill(front, accepted, [LARGE])
    client.close()
    with pytest.raises(local.LocalClosed):
        front.flush(accepted)
    front.drop(accepted)


def test_an_answer_whose_header_is_long_arrives_or_its_client_goes(fronts: Fronts) -> None:
    """A message of 65,536 requests of which each second was late: an ERROR of 32,768 runs."""
    front = fronts.front()
    accepted, client = fronts.connect(front)
    client.read()
    header = b"h" * 500_000
    if front.send(accepted.key, header, []):
        assert select.select([client.socket], [], [], 0)[0], "the answer is lost, nobody is told"
        assert client.read() == (header, [])


# Going


def test_the_memory_of_a_client_that_goes_is_free_at_once(fronts: Fronts) -> None:
    front = fronts.front()
    before = descriptors_of("batchyard-region")
    accepted, client = fronts.connect(front)
    assert descriptors_of("batchyard-region") > before
    client.close()
    front.drop(accepted)
    assert descriptors_of("batchyard-region") == before


def descriptors_of(name: str) -> int:
    with open("/proc/self/maps") as maps:
        return sum(name in line for line in maps)


def test_what_waits_goes_out_before_the_end_to_those_who_read(fronts: Fronts) -> None:
    front = fronts.front()
    accepted, client = fronts.connect(front)
    sent = fill(front, accepted, [b"x" * 4096])
    # Another process reads: this one waits until all is sent.
    code = (
        "import os, select, sys\n"
        "from batchyard.wire.local import LocalSocket, LocalClosed\n"
        "import socket\n"
        "end = LocalSocket(socket.socket(fileno=int(sys.argv[1])))\n"
        "heads = []\n"
        "try:\n"
        "    while True:\n"
        "        select.select([end], [], [])\n"
        "        heads.append(bytes(end.receive()[0]))\n"
        "except LocalClosed:\n"
        "    print(len(heads), heads[-1].decode())\n"
    )
    fd = client.socket.fileno()
    with subprocess.Popen(
        [sys.executable, "-c", code, str(fd)],
        pass_fds=[fd],
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        client.close()
        front.finish()
        front.close()
        assert child.communicate(timeout=DEADLINE_S)[0].split() == [str(sent + 1), str(sent - 1)]


def test_those_who_do_not_read_do_not_hold_up_the_end(
    fronts: Fronts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_front, "LINGER_S", 0.05)
    front = fronts.front()
    stuck, _ = fronts.connect(front)
    gone, left = fronts.connect(front)
    fill(front, stuck, [LARGE])
    fill(front, gone, [LARGE])
    left.close()
    front.finish()
    front.close()
    assert not front.knows(stuck.key)
    assert not os.path.exists(fronts.path())


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """So many are open that the next have numbers beyond what select takes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(2048, hard), hard))
    opened = [os.open("/dev/null", os.O_RDONLY)]
    while opened[-1] < 1100:
        opened.append(os.dup(opened[0]))
    yield
    for fd in opened:
        os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_end_with_many_descriptors(
    many_descriptors: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_front, "LINGER_S", 0.05)
    epoll = select.epoll()
    front = LocalFront(epoll, REGION_NBYTES, 2)
    endpoint = f"ipc://{tmp_path}/broker"
    front.listen([endpoint], Access(0o600))
    client = Client(str(local.socket_path(endpoint)))
    accepted = front.accept(front.listener_filenos()[-1], WELCOME)
    try:
        assert accepted is not None
        epoll.register(accepted.fileno(), select.EPOLLIN)
        fill(front, accepted, [b"x" * 4096])
        front.close()
    finally:
        client.close()
        if accepted is not None and front.knows(accepted.key):
            front.drop(accepted)
        front.close()
        epoll.close()


def test_a_client_that_there_is_no_descriptor_for_is_turned_away(fronts: Fronts) -> None:
    """Else it would knock forever, and the broker look at the door in every turn."""
    front = fronts.front()
    client = Client(fronts.path())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = os.dup(0)
    os.close(spare)
    resource.setrlimit(resource.RLIMIT_NOFILE, (spare, hard))
    try:
        accepted = front.accept(front.listener_filenos()[-1], WELCOME)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert accepted is None
    with pytest.raises(local.LocalClosed):
        client.read()
    client.close()
    # The next is let in.
    _, other = fronts.connect(front)
    assert other.read() == (WELCOME, [])


@pytest.mark.parametrize("spare", [1, 2])
def test_no_descriptor_left_for_a_region(fronts: Fronts, spare: int) -> None:
    front = fronts.front()
    client = Client(fronts.path())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    next_fd = os.dup(0)
    os.close(next_fd)
    # The listener gives one; the region takes one, and its mapping another.
    resource.setrlimit(resource.RLIMIT_NOFILE, (next_fd + spare, hard))
    try:
        accepted = front.accept(front.listener_filenos()[-1], WELCOME)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert accepted is not None
    assert accepted.region is None
    assert client.read() == (WELCOME, [])
    client.close()


def test_a_socket_that_is_no_clients_is_not_minded(fronts: Fronts) -> None:
    """Something else that connects, and says what is no message, only ends itself."""
    front = fronts.front()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
        other.connect(fronts.path())
        accepted = fronts.accept(front)
        assert accepted is not None
        other.send(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(local.LocalClosed):
            accepted.socket.receive()
        front.drop(accepted)
