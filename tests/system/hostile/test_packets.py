"""Packets that are no messages, and what comes with them."""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.hostility import ECHO, HELLO, SIZE, connect, open_files
from support.local_clients import LocalClient
from support.server import BROKER, Server

from batchyard.wire import protocol
from batchyard.wire.protocol import MessageType


def raw_packet(*lengths: int, data: bytes = b"", count: int | None = None) -> bytes:
    head = len(lengths) if count is None else count
    return struct.pack(f"<{len(lengths) + 1}Q", head, *lengths) + data


def message(*buffers: bytes) -> bytes:
    """A packet that is right, whatever is in it."""
    return raw_packet(*map(len, buffers), data=b"".join(buffers))


@pytest.mark.parametrize(
    "packet",
    [
        b"\0",
        b"BY\x01\x01\x90",
        bytes(8),
        bytes(16),
        raw_packet(count=1),
        raw_packet(4, data=b"BY\x01"),
        raw_packet(3, data=b"BY\x01\x01"),
        raw_packet(4, count=2, data=b"BY\x01\x01"),
        raw_packet(4, count=1 << 63, data=b"BY\x01\x01"),
        raw_packet(4, count=(1 << 64) - 1, data=b"BY\x01\x01"),
        raw_packet(4, count=1 << 61, data=b"BY\x01\x01"),
        raw_packet((1 << 64) - 4, 8, data=b"BY\x01\x01"),
        raw_packet((1 << 64) - 1, data=b"BY\x01\x01"),
        raw_packet(*[0] * 2049),
        bytes(range(256)) * 500,
        b"\xff" * 200_000,
    ],
)
def test_packets_that_are_no_messages_end_the_connection(bad: LocalClient, packet: bytes) -> None:
    bad.send_packet(packet)
    assert bad.was_dropped()


@pytest.mark.parametrize("nbytes", [256 * 1024 + 1, 300_000])
def test_packets_that_are_too_long_end_the_connection(bad: LocalClient, nbytes: int) -> None:
    bad.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    length = nbytes - 16
    packet = raw_packet(length, data=HELLO + bytes(length - len(HELLO)))
    assert len(packet) == nbytes
    bad.send_packet(packet)
    assert bad.was_dropped()


def test_an_empty_packet_is_the_end(bad: LocalClient) -> None:
    bad.socket.send(b"")
    assert bad.was_dropped()


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"B",
        b"XX\x01\x01\x90",
        b"BY\x02\x01\x90",
        b"BY\x01\xff\x90",
        b"BY\x01\x03",
        b"BY\x01\x03\xc1",
        b"BY\x01\x03\x80",
        b"BY\x01\x03" + b"\x91" * 60_000,
        protocol.encode(MessageType.WELCOME, [1]),
        protocol.encode(MessageType.RESULT, []),
        protocol.encode(MessageType.PREDICT, []),
        protocol.encode(MessageType.PREDICT, [1, ECHO, 1, None, None, None]),
        protocol.encode(MessageType.CANCEL, [1]),
        protocol.encode(MessageType.QUERY, []),
    ],
)
def test_headers_that_are_none_are_answered(bad: LocalClient, header: bytes) -> None:
    bad.send(header)
    assert bad.answer()[0] in (MessageType.ERROR, MessageType.ANSWER)
    assert bad.answers_until_welcome() == []


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.one_of(
            st.binary(min_size=1, max_size=200),
            st.binary(max_size=60).map(lambda data: raw_packet(len(data), data=data)),
            st.binary(max_size=60).map(lambda data: message(HELLO, data)),
            st.recursive(st.none() | st.integers(0, 9), lambda x: st.lists(x, max_size=5)).map(
                lambda body: message(b"BY\x01\x03" + msgpack.packb(body))
            ),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_random_packets(server: Server, packets: list[bytes]) -> None:
    with connect(server) as bad:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for packet in packets:
                bad.send_packet(packet)
        # It is heard to the end, or dropped.
        with contextlib.suppress(Exception):
            bad.send(HELLO)
        while (answer := bad.receive()) is not None and answer[0] is not MessageType.WELCOME:
            assert answer[0] in (MessageType.ERROR, MessageType.ANSWER)


def test_descriptors_that_it_sends_are_dropped(server: Server, bad: LocalClient) -> None:
    before = open_files(server)
    read, write = os.pipe()
    try:
        rights = array.array("i", [write] * 100)
        for _ in range(50):
            packet = raw_packet(len(HELLO), data=HELLO)
            bad.socket.sendmsg([packet], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
            assert bad.answer()[0] is MessageType.WELCOME
        assert open_files(server).keys() == before.keys()
        (broker,) = server.processes(BROKER)
        pipes = [os.readlink(f"/proc/self/fd/{write}")]
        opened = [os.readlink(fd.path) for fd in os.scandir(f"/proc/{broker}/fd")]
        assert not set(pipes) & set(opened)
    finally:
        os.close(read)
        os.close(write)


def test_a_region_cannot_be_resized(bad: LocalClient) -> None:
    for size in (0, SIZE // 2, SIZE + 4096):
        with pytest.raises(PermissionError):
            os.ftruncate(bad.region_fd, size)
