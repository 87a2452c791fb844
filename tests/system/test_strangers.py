"""Break-ins by TCP: nobody gets in, and those who may be there notice nothing."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from support.documented_client import HELLO, QUERY, DocumentedClient
from support.hostility import Witness
from support.keys import Keyring
from support.server import BROKER, Server, callable_path, model_table
from support.waiting import DEADLINE_S, wait_until

from batchyard.broker.front import Front
from batchyard.clients import Client
from batchyard.clients.errors import Unauthenticated
from batchyard.wire.access import Access
from batchyard.wire.keys import ClientCurve

MIB = 1 << 20
# ZMTP 3.1: signature, version, mechanism, as-server, filler.
GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x01" + b"CURVE".ljust(20, b"\0") + bytes(32)
NULL_GREETING = GREETING.replace(b"CURVE", b"NULL\0")
NULL_READY = b"\x04\x1a\x05READY\x0bSocket-Type\0\0\0\x06DEALER"


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Keyring:
    return Keyring(tmp_path_factory.mktemp("keys") / "keys", "alice", "bob")


@pytest.fixture(scope="module")
def server(ring: Keyring) -> Iterator[Server]:
    echo = model_table("echo", callable_path("echo"))
    config = ring.table() + "max_message_mb = 1\n" + echo
    with Server(config=config, ipc=True, client_options=ring.options("alice")) as server:
        yield server


@pytest.fixture(autouse=True)
def _others_notice_nothing(server: Server) -> Iterator[None]:
    """A client by each door is answered throughout, and afterwards nothing is left."""
    (broker,) = server.processes(BROKER)
    server.stats()
    with contextlib.ExitStack() as stack:
        clients = [server.client(), Client(server.endpoints[-1])]
        for client in clients:
            stack.enter_context(client)
            # What is made for the first request is there.
            with Witness(client):
                pass
        before = descriptors(broker)
        with Witness(clients[0]), Witness(clients[1]):
            yield
        wait_until(
            lambda: descriptors(broker) <= before,
            lambda: f"{descriptors(broker)} descriptors are no more than {before}",
        )
    assert server.processes(BROKER) == [broker]
    assert "Traceback" not in server.log


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def address(server: Server) -> tuple[str, int]:
    host, _, port = server.endpoint.removeprefix("tcp://").rpartition(":")
    return host, int(port)


def knock(server: Server, *words: bytes) -> socket.socket:
    knocking = socket.create_connection(address(server), DEADLINE_S)
    for word in words:
        knocking.sendall(word)
    return knocking


def is_closed(knocking: socket.socket) -> bool:
    """Reads to the end, which must come."""
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        while knocking.recv(1 << 16):
            pass
    return True


def frame(command: bytes, size: int | None = None) -> bytes:
    """A long command frame, which may lie about its size."""
    return b"\x06" + struct.pack(">Q", len(command) if size is None else size) + command


@pytest.mark.parametrize(
    "words",
    [
        [NULL_GREETING, NULL_READY],
        [NULL_GREETING.replace(b"NULL\0", b"PLAIN"), b"\x04\x0d\x05HELLO\x01a\x01b"],
        [GREETING, NULL_READY],
        [GREETING, frame(b"\x05HELLO" + bytes(194))],
        [GREETING, frame(b"\x05HELLO\x01\x00" + bytes(192))],
        [GREETING, frame(b"\x08INITIATE" + bytes(300))],
        [GREETING, frame(b"\x07MESSAGE" + bytes(40))],
        [GREETING, frame(b"\x05READY")],
        [GREETING, frame(b"")],
        [GREETING, frame(b"\xffHELLO")],
        [GREETING, b"\x00\x05hello"],
        [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" + bytes(64)],
        [os.urandom(1000)],
        # ZMTP 1.0 and 2.0, which know no security.
        [b"\x01\x00" + b"\x06\x00hello" * 20],
        [GREETING[:10] + b"\x01\x05\x00\x00" + b"\x00\x05hello"],
        # Larger than any message may be.
        [GREETING, frame(b"\x05HELLO", 1 << 62), bytes(100)],
        [GREETING, frame(b"\x05HELLO", 2 * MIB), bytes(100)],
    ],
    ids=range(17),
)
def test_what_is_no_handshake_is_hung_up_on(server: Server, words: list[bytes]) -> None:
    # Random bytes may look like the beginning of something: then time ends it.
    with knock(server) as knocking:
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            for word in words:
                knocking.sendall(word)
        assert is_closed(knocking)


class Recorder:
    """Stands between a client and the server, and keeps what the client says."""

    def __init__(self, server: Server) -> None:
        self.recorded = b""
        self._server = server
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        client, _ = self._listener.accept()
        with client, knock(self._server) as onward:
            other = {client: onward, onward: client}
            while True:
                for ready in select.select([client, onward], [], [])[0]:
                    with contextlib.suppress(ConnectionResetError):
                        heard = ready.recv(1 << 16)
                    if not heard:
                        return
                    if ready is client:
                        self.recorded += heard
                    other[ready].sendall(heard)

    def close(self) -> None:
        self._thread.join(DEADLINE_S)
        self._listener.close()


def test_a_recorded_conversation_opens_nothing(ring: Keyring, server: Server) -> None:
    recorder = Recorder(server)
    with Client(recorder.endpoint, **ring.options("bob")) as bob:
        assert bob.predict("echo", {"x": [[4711.0]]})["x"].tolist() == [[4711.0]]
    recorder.close()
    # Nobody who listens in learns what was said.
    assert struct.pack("<d", 4711.0) not in recorder.recorded
    assert b"echo" not in recorder.recorded
    # HELLO may be said again, to which each connection gets a cookie of its own; the rest no more.
    with knock(server, recorder.recorded) as replayed:
        assert is_closed(replayed)
    with knock(server) as replayed:
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            for i in range(0, len(recorder.recorded), 64):
                replayed.sendall(recorder.recorded[i : i + 64])
        assert is_closed(replayed)


def test_thousands_of_half_open_connections(ring: Keyring, server: Server) -> None:
    """They hold a descriptor each until the handshake's time is over; new clients get in."""
    (broker,) = server.processes(BROKER)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 8192), most))
    count = min(2000, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
    try:
        with contextlib.ExitStack() as stack:
            known = descriptors(broker)
            for i in range(count):
                # Some say nothing, some begin.
                stack.enter_context(knock(server, *([GREETING] if i % 2 else [])))
            wait_until(lambda: descriptors(broker) > known + count // 2, "they are there")
            with Client(server.endpoint, **ring.options("bob")) as bob:
                assert bob.predict("echo", {"x": [[1.0]]}, timeout=DEADLINE_S)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_crowd_of_strangers_with_keys(ring: Keyring, server: Server) -> None:
    """Each costs the server a whole handshake; the log tells of some, and counts the others."""
    lines = server.log.count("event=stranger_refused")

    def told() -> int:
        return server.log.count("event=stranger_refused") - lines

    curve = ClientCurve(ring.public("server"), ring.pair("mallory"))
    with zmq.Context() as context, contextlib.ExitStack() as stack:
        for _ in range(100):
            stranger = stack.enter_context(context.socket(zmq.DEALER))
            stranger.setsockopt(zmq.LINGER, 0)
            curve.apply(stranger)
            stranger.connect(server.endpoint)
        with pytest.raises(Unauthenticated):
            Client(server.endpoint, **ring.options("mallory"))
        # Who came last may be the first that libzmq lets speak.
        wait_until(lambda: told() >= 10, lambda: server.log_tail)
    # Those at once, and one for each second that it took.
    assert told() <= 20


class KeyedClient(DocumentedClient):
    """One that was let in."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, curve: ClientCurve
    ) -> None:
        self._curve = curve
        super().__init__(context, endpoint)

    def is_answered(self) -> bool:
        """Whether it is, soon; what was under way when a connection ended never is."""
        self.send(HELLO, [])
        return bool(self._socket.poll(100))

    @contextlib.contextmanager
    def disconnections(self) -> Iterator[zmq.Socket[bytes]]:
        """Readable when the connection ends."""
        with self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED) as monitor:
            yield monitor
            self._socket.disable_monitor()

    def prepare(self, socket: zmq.Socket[bytes]) -> None:
        self._curve.apply(socket)


class DeafClient(KeyedClient):
    """One that was let in and does not read: neither does its kernel for long."""

    def prepare(self, socket: zmq.Socket[bytes]) -> None:
        super().prepare(socket)
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.RCVHWM, 1)
        socket.setsockopt(zmq.RCVBUF, 4096)


def test_who_is_let_in_is_bounded(ring: Keyring, server: Server) -> None:
    """Frames that are too large end the connection; who never reads loses its answers."""
    curve = ClientCurve(ring.public("server"), ring.pair("bob"))
    with zmq.Context() as context:
        large = KeyedClient(context, server.endpoint, curve)
        large.assert_nothing_comes()
        with large.disconnections() as disconnections:
            large.send_frames(bytes(2 * MIB))
            assert disconnections.poll(DEADLINE_S * 1e3)
        # It connects again by itself.
        wait_until(large.is_answered, "it is there again")
        large.close()
        dropped = server.stats()["broker"]["replies_dropped"]
        deaf = DeafClient(context, server.endpoint, curve)
        with contextlib.closing(deaf):
            # More than the kernel and the broker's socket hold.
            for i in range(20_000):
                deaf.send(QUERY, [i, "stats", {}])
            wait_until(
                lambda: server.stats()["broker"]["replies_dropped"] > dropped, "answers are dropped"
            )


def test_half_a_handshake_has_its_time(
    ring: Keyring, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchyard.broker.front.HANDSHAKE_MS", 50)
    front = Front(MIB, ring.pair("server"), str(ring.clients))
    try:
        (endpoint,) = front.bind(["tcp://127.0.0.1:*"], Access(0o600))
        port = int(endpoint.rpartition(":")[2])
        for words in (b"", GREETING, GREETING + b"\x06"):
            with socket.create_connection(("127.0.0.1", port), DEADLINE_S) as knocking:
                knocking.sendall(words)
                assert is_closed(knocking)
    finally:
        front.close()
