"""Who is let in by TCP: a front with keys, and clients that have them, or not."""

from __future__ import annotations

import contextlib
import ctypes
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import zmq
from support.keys import Keyring
from support.waiting import DEADLINE_S, wait_until
from zmq.utils.monitor import parse_monitor_message

from batchyard.broker import gate
from batchyard.broker.front import REVOKED, Front
from batchyard.broker.gate import Gate
from batchyard.wire import log
from batchyard.wire.access import Access
from batchyard.wire.keys import ClientCurve, fingerprint

Socket = zmq.Socket[bytes]
Prepare = Callable[[Socket], None]


@pytest.fixture
def ring(tmp_path: Path) -> Keyring:
    return Keyring(tmp_path / "keys", "alice", "bob")


class Door:
    """A front that is served by the test itself, and its clients."""

    def __init__(self, ring: Keyring, folder: Path, stack: ExitStack) -> None:
        self.ring = ring
        self.front = Front(1 << 20, ring.pair("server"), str(ring.clients))
        stack.callback(self.front.close)
        bind = ["tcp://127.0.0.1:*", f"ipc://{folder}/door"]
        self.tcp, self.ipc = self.front.bind(bind, Access(0o600))
        self._context: zmq.Context[Socket] = zmq.Context()
        stack.callback(self._context.term)
        self._stack = stack

    @property
    def gate(self) -> Gate:
        assert self.front.gate is not None
        return self.front.gate

    def serve(self, timeout_s: float = 0.02) -> tuple[bytes, bytes] | None:
        """What the broker's loop does; the next message's client and header, if one came."""
        select.select([self.front.fileno(), self.gate.fileno()], [], [], timeout_s)
        self.gate.serve()
        message = self.front.receive()
        return None if message is None else message[:2]

    def next_message(self) -> tuple[bytes, bytes]:
        """Serves until a message comes."""
        until = time.monotonic() + DEADLINE_S
        while time.monotonic() < until:
            message = self.serve()
            if message is not None:
                return message
        raise AssertionError("no message")

    def client(self, endpoint: str, prepare: Prepare) -> tuple[Socket, Socket]:
        """A client that says hi as soon as it is let in, and its monitor."""
        socket = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RECONNECT_IVL, 5)
        prepare(socket)
        monitor = socket.get_monitor_socket()
        for ended in (monitor.close, socket.close, socket.disable_monitor):
            self._stack.callback(ended)
        socket.connect(endpoint)
        socket.send(b"hi")
        return socket, monitor

    def failure(self, monitor: Socket, kinds: int) -> int:
        """Serves until a handshake fails in one of these ways; nothing gets through."""
        until = time.monotonic() + DEADLINE_S
        while time.monotonic() < until:
            assert self.serve() is None
            while monitor.poll(0):
                told = parse_monitor_message(monitor.recv_multipart())
                assert told["event"] != zmq.EVENT_HANDSHAKE_SUCCEEDED
                if told["event"] & kinds:
                    return int(told["value"])
        raise AssertionError("no failure")

    def curve(self, name: str, server: str = "server") -> Prepare:
        """Who has the keys of ``name`` and takes the server for ``server``."""
        return ClientCurve(self.ring.public(server), self.ring.pair(name)).apply


@pytest.fixture
def door(ring: Keyring, tmp_path: Path) -> Iterator[Door]:
    with ExitStack() as stack:
        yield Door(ring, tmp_path, stack)


def without_keys(socket: Socket) -> None:
    """As clients are by ipc."""


def with_a_password(socket: Socket) -> None:
    socket.setsockopt(zmq.PLAIN_USERNAME, b"alice")
    socket.setsockopt(zmq.PLAIN_PASSWORD, b"guess")


def test_by_tcp_with_keys_and_by_ipc_without(door: Door) -> None:
    for endpoint, prepare in (
        (door.tcp, door.curve("alice")),
        (door.ipc, without_keys),
        (door.tcp, door.curve("bob")),
    ):
        socket, _ = door.client(endpoint, prepare)
        client, header = door.next_message()
        assert header == b"hi"
        door.front.send(client, b"answer", [])
        assert socket.poll(DEADLINE_S * 1e3)
        assert socket.recv() == b"answer"


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, object]]]:
    """What is logged, by event."""
    told: list[tuple[str, dict[str, object]]] = []
    for level in ("info", "warning", "error"):
        monkeypatch.setattr(log, level, lambda event, **fields: told.append((event, fields)))
    monkeypatch.setattr(log, "limited", lambda _, event, **fields: told.append((event, fields)))
    return told


def test_a_stranger_is_told_so_and_logged(
    door: Door, lines: list[tuple[str, dict[str, object]]]
) -> None:
    _, monitor = door.client(door.tcp, door.curve("mallory"))
    assert door.failure(monitor, zmq.EVENT_HANDSHAKE_FAILED_AUTH) == 400
    ((event, fields),) = lines
    assert event == "stranger_refused"
    assert fields == {"address": "127.0.0.1", "key": fingerprint(door.ring.public("mallory"))}
    assert door.gate.refused == 1


@pytest.mark.parametrize("prepare", [without_keys, with_a_password])
def test_by_tcp_without_keys(door: Door, prepare: Prepare) -> None:
    _, monitor = door.client(door.tcp, prepare)
    value = door.failure(monitor, zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)
    assert value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH


def test_with_another_servers_key(door: Door) -> None:
    _, monitor = door.client(door.tcp, door.curve("alice", server="bob"))
    door.failure(monitor, zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL)


def test_when_nobody_answers_nobody_is_let_in(door: Door) -> None:
    """Not even with a key that is allowed: libzmq's default is otherwise."""
    door.gate.close()
    _, monitor = door.client(door.tcp, door.curve("alice"))
    until = time.monotonic() + DEADLINE_S
    failed = False
    while not failed and time.monotonic() < until:
        assert door.front.receive() is None
        if monitor.poll(10):
            event = parse_monitor_message(monitor.recv_multipart())["event"]
            assert event != zmq.EVENT_HANDSHAKE_SUCCEEDED
            failed = event == zmq.EVENT_DISCONNECTED
    assert failed


def test_who_is_revoked_is_refused_at_once_and_others_are_not(door: Door) -> None:
    alice, _ = door.client(door.tcp, door.curve("alice"))
    door.next_message()
    bob, _ = door.client(door.tcp, door.curve("bob"))
    near, _ = door.client(door.ipc, without_keys)
    for _ in range(2):
        door.next_message()
    door.ring.revoke("alice")
    alice.send(b"before")
    assert door.next_message()[1] == b"before"
    door.gate.reload()
    for client, expected in ((alice, REVOKED), (bob, b"more"), (near, b"more")):
        client.send_multipart([b"more", b"with", b"tensors"])
        assert door.next_message()[1] == expected
    # A new connection does not get as far.
    _, monitor = door.client(door.tcp, door.curve("alice"))
    assert door.failure(monitor, zmq.EVENT_HANDSHAKE_FAILED_AUTH) == 400
    door.ring.allow("alice")
    door.gate.reload()
    alice.send(b"again")
    assert door.next_message()[1] == b"again"


# What a client by ipc says in ZMTP 3.1: its greeting, its properties, and a message.
NULL_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
READY = b"\x05READY\x0bSocket-Type\0\0\0\x06DEALER\x07User-Id\0\0\0\x02\xff\xfe"
MESSAGE = b"\x00\x02hi"


def read_whole(near: socket.socket, nbytes: int) -> bytes:
    """So many bytes: with a timeout, Python's sockets do not wait for all by themselves."""
    data = b""
    while len(data) < nbytes:
        piece = near.recv(nbytes - len(data))
        assert piece, "it hung up"
        data += piece
    return data


def test_by_ipc_nobody_is_revoked_whoever_they_say_they_are(door: Door) -> None:
    door.client(door.tcp, door.curve("alice"))
    door.next_message()
    door.ring.revoke("alice")
    door.gate.reload()
    with socket.socket(socket.AF_UNIX) as near:
        near.connect(door.ipc.removeprefix("ipc://"))
        near.settimeout(DEADLINE_S)
        near.sendall(NULL_GREETING)
        read_whole(near, len(NULL_GREETING))
        near.sendall(bytes([4, len(READY)]) + READY)
        # As a peer does: it speaks once the other is ready, too.
        flags, length = read_whole(near, 2)
        assert flags == 4
        read_whole(near, length)
        near.sendall(MESSAGE)
        assert door.next_message()[1] == b"hi"


def test_what_cannot_be_read_changes_nothing_and_none_is_none(
    door: Door, lines: list[tuple[str, dict[str, object]]]
) -> None:
    aside = door.ring.clients.rename(door.ring.folder / "aside")
    door.gate.reload()
    assert [event for event, _ in lines] == ["keys_not_reloaded"]
    _, monitor = door.client(door.tcp, door.curve("alice"))
    assert door.next_message()[1] == b"hi"
    aside.rename(door.ring.clients)
    for name in ("alice", "bob"):
        door.ring.revoke(name)
    door.gate.reload()
    assert "no_keys" in [event for event, _ in lines]
    _, monitor = door.client(door.tcp, door.curve("bob"))
    door.failure(monitor, zmq.EVENT_HANDSHAKE_FAILED_AUTH)


def test_an_empty_list_lets_nobody_in(
    ring: Keyring, tmp_path: Path, lines: list[tuple[str, dict[str, object]]]
) -> None:
    """No reason not to start: the last key may have been revoked."""
    for name in ("alice", "bob"):
        ring.revoke(name)
    (ring.clients / "broken.key").write_text("")
    with ExitStack() as stack:
        door = Door(ring, tmp_path, stack)
        assert [event for event, _ in lines] == ["key_not_read", "keys_read", "no_keys"]
        assert "batchyard keys allow" in str(lines[-1][1]["reason"])
        _, monitor = door.client(door.tcp, door.curve("alice"))
        assert door.failure(monitor, zmq.EVENT_HANDSHAKE_FAILED_AUTH) == 400


REQUEST = [b"1.0", b"7", gate.ZAP_DOMAIN, b"127.0.0.1", b"", b"CURVE"]


@pytest.mark.parametrize(
    "request_",
    [
        [b""],
        [b"1.0"],
        [b"1.0", b"7", gate.ZAP_DOMAIN, b"\xff" * 300, b"", b"CURVE"],
        [*REQUEST, b""],
        [*REQUEST, b"k" * 31],
        [*REQUEST, b"k" * 32, b"more"],
        [b"2.0", *REQUEST[1:], b"k" * 32],
        [*REQUEST[:2], b"elsewhere", *REQUEST[3:], b"k" * 32],
        [*REQUEST[:5], b"NULL"],
        [*REQUEST[:5], b"PLAIN", b"alice", b"guess"],
        [b"x"] * 500,
        [*REQUEST[:3], b"\xff\xfe", b"", b"CURVE", b"k" * 32],
    ],
)
def test_garbage_is_refused(door: Door, request_: list[bytes]) -> None:
    with contextlib.closing(door.front._context.socket(zmq.REQ)) as asker:
        asker.setsockopt(zmq.LINGER, 0)
        asker.connect(gate._ENDPOINT)
        for asked in (request_, [*REQUEST, zmq.utils.z85.decode(door.ring.public("alice"))]):
            asker.send_multipart(asked)
            door.serve()
            assert asker.poll(DEADLINE_S * 1e3)
            version, _, status, text, user, _ = asker.recv_multipart()
            assert version == b"1.0"
            assert text
            assert (status == b"200") == (asked is not request_) == bool(user)


def test_nobody_can_guess_the_number_of_the_next_client(tmp_path: Path) -> None:
    """Whoever claims it ends libzmq; whoever claims another's gets its answers."""
    numbers = set()
    for i in range(3):
        # As in a new process.
        ctypes.CDLL(None).srand(1)
        front = Front(1 << 20)
        with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
            (endpoint,) = front.bind([f"ipc://{tmp_path}/{i}"], Access(0o600))
            socket.connect(endpoint)
            socket.send(b"hi")
            messages: list[bytes] = []

            def came(front: Front = front, messages: list[bytes] = messages) -> bool:
                message = front.receive()
                messages.extend(message[:1] if message is not None else ())
                return bool(messages)

            wait_until(came, "the message came")
            numbers.add(messages[0])
        front.close()
    assert len(numbers) == 3
