"""Packets between a broker and a client of its machine, over real sockets."""

from __future__ import annotations

import os
import secrets
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.descriptors import no_descriptors_leak
from support.local_ends import (
    Ends,
    RawEnds,
    local_ends,
    pair,
    raw_ends,
    receive,
    receive_with_fd,
    received,
)

from batchyard.wire import arena, local
from batchyard.wire.access import Access
from batchyard.wire.endpoints import IPC_PATH_MAX
from batchyard.wire.local import INLINE_NBYTES, LocalClosed, LocalSocket

SHARES_SOCKET = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60
)
EITHER = pytest.mark.parametrize("read", [receive, receive_with_fd])


@pytest.fixture(autouse=True)
def _no_leaks() -> Iterator[None]:
    with no_descriptors_leak():
        yield


@pytest.fixture
def ends(_no_leaks: None) -> Iterator[Ends]:
    with local_ends() as made:
        yield made


@pytest.fixture
def raw(_no_leaks: None) -> Iterator[RawEnds]:
    with raw_ends() as made:
        yield made


# Messages in packets


@SHARES_SOCKET
@given(st.binary(max_size=40), st.lists(st.binary(max_size=40), max_size=5))
@example(b"", [])
@example(b"", [b"", b""])
def test_a_message_arrives_as_it_was_sent(ends: Ends, header: bytes, frames: list[bytes]) -> None:
    a, b = ends
    assert a.send(header, frames)
    assert received(b) == (header, frames)
    assert a.send(header, [memoryview(frame) for frame in frames])
    message = b.receive_with_fd()
    assert message is not None
    assert [bytes(message[0]), *map(bytes, message[1]), message[2]] == [header, *frames, None]
    assert b.receive() is None
    assert b.receive_with_fd() is None


@pytest.mark.parametrize("count", [998, 999, 1000, 2047])
def test_a_message_of_many_frames(ends: Ends, count: int) -> None:
    # More than a system call takes pieces of.
    a, b = ends
    frames = [b"%d" % i for i in range(count)]
    assert a.send(b"head", frames)
    assert received(b) == (b"head", frames)


def test_a_message_of_more_frames_than_any_has_is_no_packet(ends: Ends) -> None:
    a, b = ends
    assert a.send(b"", [b""] * 2048)
    with pytest.raises(LocalClosed):
        b.receive()


def test_the_largest_message(ends: Ends) -> None:
    a, b = ends
    frames = [b"x" * (INLINE_NBYTES - 1), b"y"]
    assert a.send(b"h" * 1000, frames)
    assert received(b) == (b"h" * 1000, frames)


def test_messages_stay_apart_and_what_is_kept_is_not_overwritten() -> None:
    buffer = local.receive_buffer()
    with_shared = [(LocalSocket(a, buffer), LocalSocket(b, buffer)) for a, b in (pair(), pair())]
    try:
        kept = []
        for i, (a, _) in enumerate(with_shared):
            a.send(b"head %d" % i, [b"frame %d" % i])
        for _, b in with_shared:
            kept.append(received(b))
        assert kept == [(b"head 0", [b"frame 0"]), (b"head 1", [b"frame 1"])]
    finally:
        for a, b in with_shared:
            a.close()
            b.close()


def test_a_full_socket_says_so_and_loses_nothing(ends: Ends) -> None:
    a, b = ends
    sent = 0
    while a.send(b"%d" % sent, [b"x" * 5000]):
        sent += 1
    assert sent
    assert [received(b)[0] for _ in range(sent)] == [b"%d" % i for i in range(sent)]
    assert a.send(b"again", [])


# Frames beside a packet, and regions


@SHARES_SOCKET
@given(st.lists(st.binary(max_size=300), min_size=1, max_size=4).filter(any))
def test_frames_travel_in_a_memfd(ends: Ends, frames: list[bytes]) -> None:
    a, b = ends
    fd = local.memfd_of(frames)
    assert a.send_aside(b"head", frames, fd)
    os.close(fd)
    message = b.receive_with_fd()
    assert message is not None
    assert (bytes(message[0]), [bytes(f) for f in message[1]]) == (b"head", frames)
    assert message[2] is None


def test_frames_of_any_size_travel_and_can_be_written_to(ends: Ends) -> None:
    a, b = ends
    frames = [os.urandom(1 << 20), b"end"]
    fd = local.memfd_of(frames)
    assert a.send_aside(b"head", frames, fd)
    os.close(fd)
    message = b.receive_with_fd()
    assert message is not None
    with no_descriptors_leak():
        assert [bytes(frame) for frame in message[1]] == frames
        assert isinstance(message[1][0], bytearray)


def test_a_header_with_a_descriptor_hands_it_over(ends: Ends) -> None:
    a, b = ends
    fd = arena.create_memfd(4096, "test-region")
    try:
        assert a.send_aside(b"welcome", [], fd)
        message = b.receive_with_fd()
        assert message is not None
        header, frames, region = message
        assert (bytes(header), frames) == (b"welcome", [])
        assert region is not None
        assert os.path.samestat(os.fstat(fd), os.fstat(region))
        assert not os.get_inheritable(region)
        os.close(region)
    finally:
        os.close(fd)


def test_a_descriptor_that_nobody_asked_for_is_dropped(raw: RawEnds) -> None:
    sender, end = raw
    read_end, write_end = os.pipe()
    socket.send_fds(sender, [struct.pack("<2Q", 1, 2) + b"hi"], [write_end, write_end])
    os.close(write_end)
    assert received(end) == (b"hi", [])
    # The last that could write to the pipe is gone.
    assert os.read(read_end, 1) == b""
    os.close(read_end)


def test_a_full_socket_takes_no_descriptor(ends: Ends) -> None:
    a, b = ends
    while a.send(b"", [b"x" * 5000]):
        pass
    fd = local.memfd_of([b"frame"])
    assert not a.send_aside(b"head", [b"frame"], fd)
    while b.receive() is not None:
        pass
    assert a.send_aside(b"head", [b"frame"], fd)
    os.close(fd)
    message = b.receive_with_fd()
    assert message is not None
    assert bytes(message[1][0]) == b"frame"


# The end


@EITHER
@pytest.mark.parametrize("unread", [False, True])
def test_end_of_file(ends: Ends, unread: bool, read: Callable[[LocalSocket], object]) -> None:
    a, b = ends
    if unread:
        b.send(b"never read", [])
    a.close()
    assert a.fileno() == -1
    with pytest.raises(LocalClosed):
        read(b)
    with pytest.raises(LocalClosed):
        b.send(b"", [])
    fd = local.memfd_of([b"x"])
    with pytest.raises(LocalClosed):
        b.send_aside(b"", [b"x"], fd)
    os.close(fd)


def test_what_was_sent_arrives_from_one_that_did_not_read(ends: Ends) -> None:
    a, b = ends
    b.send(b"never read", [])
    a.send(b"last words", [])
    a.close()
    assert received(b) == (b"last words", [])


def test_what_was_sent_before_closing_arrives(ends: Ends) -> None:
    a, b = ends
    a.send(b"last words", [b"frame"])
    a.close()
    assert received(b) == (b"last words", [b"frame"])
    with pytest.raises(LocalClosed):
        b.receive()


# Listening


def test_a_path_takes_its_mode_and_replaces_what_was_left(tmp_path: Path) -> None:
    path = str(tmp_path / "broker.local")
    umask = os.umask(0o022)
    try:
        local.listen(path, Access(0o600)).close()
        with local.listen(path, Access(0o660)) as listener:
            assert os.stat(path).st_mode & 0o777 == 0o660
            assert os.umask(0o022) == 0o022
            end = local.connect(path)
            assert end is not None
            accepted, _ = listener.accept()
            other = LocalSocket(accepted)
            assert other.peer_uid() == end.peer_uid() == os.geteuid()
            end.send(b"hello", [])
            assert received(other) == (b"hello", [])
            end.close()
            other.close()
    finally:
        os.umask(umask)


def test_an_abstract_name_leaves_no_file(tmp_path: Path) -> None:
    name = f"\0batchyard-test-{secrets.token_hex(8)}"
    with local.listen(name, Access(0o600)):
        end = local.connect(name)
        assert end is not None
        end.close()
        with pytest.raises(OSError, match="in use"):
            local.listen(name, Access(0o600))
    assert local.connect(name) is None
    assert list(tmp_path.iterdir()) == []


def test_nobody_listens(tmp_path: Path) -> None:
    assert local.connect(str(tmp_path / "none")) is None
    (tmp_path / "file").write_text("")
    assert local.connect(str(tmp_path / "file")) is None
    assert local.connect(str(tmp_path / ("x" * 200))) is None


def test_where_nothing_can_be_bound_nothing_stays_open(tmp_path: Path) -> None:
    umask = os.umask(0o022)
    os.umask(umask)
    with pytest.raises(OSError):  # noqa: PT011 - which one is the kernel's choice
        local.listen(str(tmp_path / "no folder" / "x"), Access(0o600))
    assert os.umask(umask) == umask


def test_the_local_socket_of_an_endpoint() -> None:
    assert local.socket_path("ipc:///run/x/broker") == "/run/x/broker.local"
    assert local.socket_path("tcp://127.0.0.1:8600") is None
    longest = "/" + "x" * (IPC_PATH_MAX - 1 - len(local.LOCAL_SUFFIX))
    assert local.socket_path(f"ipc://{longest}") == f"{longest}{local.LOCAL_SUFFIX}"
    assert local.socket_path(f"ipc://{longest}x") is None
    # Bytes count, not characters.
    assert local.socket_path(f"ipc://{longest[:-1]}é") is None
