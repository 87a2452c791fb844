"""What comes over a local socket and is no message, or lies: it ends the connection, no more."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.descriptors import no_descriptors_leak
from support.local_ends import (
    RawEnds,
    raw_ends,
    receive,
    receive_with_fd,
)

from batchyard.wire import arena, local
from batchyard.wire.local import LocalClosed, LocalSocket

WORDS = st.one_of(st.integers(0, 9), st.integers(0, 2100), st.integers(0, (1 << 64) - 1))
SHARES_SOCKET = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60
)
EITHER = pytest.mark.parametrize("read", [receive, receive_with_fd])


@pytest.fixture(autouse=True)
def _no_leaks() -> Iterator[None]:
    with no_descriptors_leak():
        yield


@pytest.fixture
def raw(_no_leaks: None) -> Iterator[RawEnds]:
    with raw_ends() as made:
        yield made


@EITHER
@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"x",
        b"x" * 7,
        struct.pack("<Q", 1),
        struct.pack("<2Q", 0, 0),
        struct.pack("<2Q", 1, 1),
        struct.pack("<2Q", 1, 0) + b"more",
        struct.pack("<2Q", 1, 5) + b"less",
        struct.pack("<3Q", 2, 3, 3) + b"abcde",
        struct.pack("<3Q", 2, (1 << 64) - 1, 1) + b"",
        struct.pack("<3Q", 2, (1 << 64) - 4, 8) + b"abcd",
        struct.pack("<2Q", 2, 0),
        struct.pack("<2Q", 2049, 0) + bytes(8 * 2049),
        struct.pack("<2Q", (1 << 64) - 1, 0),
        struct.pack("<Q", 1 << 61) + bytes(64),
    ],
    ids=lambda packet: f"{len(packet)} bytes {packet[:20].hex()}",
)
def test_a_table_that_lies(
    raw: RawEnds, packet: bytes, read: Callable[[LocalSocket], object]
) -> None:
    sender, end = raw
    # What an earlier packet left in the buffer is no part of this one.
    sender.send(struct.pack("<4Q", 3, 4, 4, 4) + b"abcdefghijkl")
    assert read(end) is not None
    sender.send(packet)
    with pytest.raises(LocalClosed):
        read(end)


@EITHER
@pytest.mark.parametrize("says", [0, 4], ids=["right when cut", "right when whole"])
def test_a_packet_that_is_cut_off_is_no_message(
    raw: RawEnds, read: Callable[[LocalSocket], object], says: int
) -> None:
    sender, end = raw
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    length = len(local.receive_buffer())
    sender.send(struct.pack("<2Q", 1, length - 16 + says) + bytes(length - 16) + b"more")
    with pytest.raises(LocalClosed):
        read(end)


@SHARES_SOCKET
@given(st.lists(WORDS, max_size=6), st.binary(max_size=40), st.booleans())
def test_any_packet_is_a_message_or_none(
    raw: RawEnds, words: list[int], rest: bytes, with_fd: bool
) -> None:
    sender, end = raw
    packet = struct.pack(f"<{len(words)}Q", *words) + rest
    sender.send(packet)
    try:
        message = end.receive_with_fd() if with_fd else end.receive()
    except LocalClosed:
        return
    assert message is not None
    buffers = [message[0], *message[1]]
    table = struct.pack(f"<{len(buffers) + 1}Q", len(buffers), *map(len, buffers))
    assert table + b"".join(buffers) == packet


@SHARES_SOCKET
@given(st.lists(WORDS, max_size=5), st.binary(max_size=20), st.integers(0, 200))
def test_any_packet_with_any_memfd_is_a_message_or_none(
    raw: RawEnds, words: list[int], rest: bytes, nbytes: int
) -> None:
    sender, end = raw
    fd = arena.create_memfd(nbytes, "test-frames")
    with no_descriptors_leak():
        socket.send_fds(sender, [struct.pack(f"<{len(words)}Q", *words) + rest or b"x"], [fd])
        os.close(fd)
        try:
            message = end.receive_with_fd()
        except LocalClosed:
            return
        assert message is not None
        header, frames, region = message
        if region is not None:
            assert frames == []
            os.close(region)
        assert bytes(header) == rest
        assert [len(frame) for frame in frames] == words[2:]


@pytest.mark.parametrize("what", ["unsealed", "short", "no memory", "header too long"])
def test_outputs_that_do_not_lie_in_their_memfd(raw: RawEnds, what: str) -> None:
    sender, end = raw
    if what == "unsealed":
        fd = os.memfd_create("test")
        os.ftruncate(fd, 4096)
    elif what == "no memory":
        fd = os.open("/dev/null", os.O_RDWR)
    else:
        fd = arena.create_memfd(100, "test")
    lengths = {"short": (1, 65, 36), "header too long": (2, 1, 1)}.get(what, (1, 1, 1))
    packet = struct.pack("<4Q", 3, *lengths) + b"h"
    socket.send_fds(sender, [packet], [fd])
    os.close(fd)
    with no_descriptors_leak(), pytest.raises(LocalClosed):
        end.receive_with_fd()
