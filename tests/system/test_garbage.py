"""Garbage on every socket of a server: on the TCP port, the ipc path and the local socket, from
bytes of other protocols to messages that are nearly right. A good client is answered throughout,
and nothing of it is left afterwards."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import zmq
from fuzz import seeds
from fuzz.documents import NotADocument, pack, unpack
from fuzz.mutate import mutate
from fuzz.wire_targets import descriptors
from support.hostility import Witness, config, open_files
from support.server import BROKER, WORKER, Server
from support.waiting import wait_until

from batchyard.wire.local import LOCAL_SUFFIX

SEED = 4
MIB = 1 << 20
# What may be kept of a storm: caches that have a bound, and the allocators' own.
GROWTH_MAX = 24 * MIB
# Connections that say nothing more, and stay.
HALF_OPEN_MAX = 30

ZMTP_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16) + b"\x00" + bytes(31)
ZMTP_READY = b"\x04\x1c\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"
OTHERS_SPEAK = [
    b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"POST /v1/models/m:predict HTTP/1.1\r\nContent-Length: 9999999999\r\n\r\n{",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(64)),
    b"BY\x01\x01\x90",
    b"\0",
    ZMTP_GREETING[:11],
    ZMTP_GREETING,
    ZMTP_GREETING[:10] + b"\x09" + ZMTP_GREETING[11:],
    ZMTP_GREETING[:12] + b"CURVE" + ZMTP_GREETING[17:],
    ZMTP_GREETING + ZMTP_READY,
    ZMTP_GREETING + ZMTP_READY + b"\x00\x05BY\x01\x01\x90",
    # Half a frame, a frame that others never end, one of 2^62 bytes, one of a negative length.
    ZMTP_GREETING + ZMTP_READY + b"\x01\x05BY\x01",
    ZMTP_GREETING + ZMTP_READY + b"\x01\x05BY\x01\x01\x90",
    ZMTP_GREETING + ZMTP_READY + b"\x02" + struct.pack(">Q", 1 << 62) + b"BY",
    ZMTP_GREETING + ZMTP_READY + b"\x02" + b"\xff" * 8,
    ZMTP_GREETING + ZMTP_READY + b"\xff\xff",
]


def messages() -> list[bytes]:
    """Documents ``[header, frames]``, in what they say right or nearly so."""
    found = [[header, []] for (header,) in seeds.headers()]
    for number, (to, rows, timeouts, places, frames) in enumerate(seeds.predicts()):
        # It takes any tensors, and gives them back.
        to = pack(["echo", *to[1:3], "serving_default", *to[4:]])
        header = b"BY\x01\x03" + pack([number, to, rows, timeouts, places])
        found.append([header, frames])
    return [pack(document) for document in found]


class Storm:
    """All that is bad, by chance, but the same each time."""

    def __init__(self, server: Server, stack: ExitStack) -> None:
        self._server = server
        self._chance = random.Random(SEED)
        self._stack = stack
        self._half_open: list[socket.socket] = []
        self._context = stack.enter_context(zmq.Context())
        self._context.linger = 0
        self._messages = messages()
        self._packets = [pack(packet) for packet in seeds.local_packets()]
        stack.callback(self._leave)
        self.kinds: list[Callable[[], None]] = [
            self.speak_otherwise,
            self.speak_otherwise,
            self.send_messages,
            self.send_half_a_message,
            self.send_packets,
        ]

    def blow(self, times: int) -> None:
        """So many bad clients come, one after the other; some stay."""
        for _ in range(times):
            self._chance.choice(self.kinds)()

    def speak_otherwise(self) -> None:
        """Bytes of other protocols, cut off anywhere, or none at all, on a stream."""
        host, port = self._server.endpoint.removeprefix("tcp://").split(":")
        path = str(self._server.ipc_path)
        is_tcp = self._chance.random() < 0.6
        sock = socket.socket(socket.AF_INET if is_tcp else socket.AF_UNIX)
        # The server may have had enough, and its backlog be full.
        sock.settimeout(1.0)
        with contextlib.suppress(OSError):
            sock.connect((host, int(port)) if is_tcp else path)
            said = self._chance.choice([*OTHERS_SPEAK, self._random_bytes(), b""])
            end = len(said) if self._chance.random() < 0.7 else self._chance.randrange(99)
            if said.startswith(ZMTP_GREETING):
                # Who goes on before the server greets is not listened to.
                sock.sendall(ZMTP_GREETING)
                sock.recv(len(ZMTP_GREETING))
                said, end = said[len(ZMTP_GREETING) :], max(end - len(ZMTP_GREETING), 0)
            sock.sendall(said[:end] + self._random_bytes() * (self._chance.random() < 0.3))
        self._end(sock)

    def send_messages(self) -> None:
        """Messages of ZeroMQ, whose frames are wrong; answers are not read."""
        with self._connected(self._chance.choice([zmq.DEALER, zmq.DEALER, zmq.REQ])) as sock:
            for _ in range(1 if sock.type == zmq.REQ else 8):
                header, frames = self._message()
                with contextlib.suppress(zmq.Again):
                    sock.send_multipart([header, *frames], zmq.NOBLOCK)
            # So that it arrives before it is closed.
            sock.poll(20)

    def send_half_a_message(self) -> None:
        """The frame after the last does not come."""
        with self._connected(zmq.DEALER) as sock:
            for frame in (self._message()[0], self._random_bytes()):
                with contextlib.suppress(zmq.Again):
                    sock.send(frame, zmq.NOBLOCK | zmq.SNDMORE)
            sock.poll(5)

    def send_packets(self) -> None:
        """Packets of the local socket that are none, and descriptors of anything."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.settimeout(1.0)
        with contextlib.suppress(OSError):
            sock.connect(f"{self._server.ipc_path}{LOCAL_SUFFIX}")
            for _ in range(4):
                fds = self._chance.sample(descriptors(), self._chance.randrange(5))
                socket.send_fds(sock, [self._packet() or b"\0"], fds)
        self._end(sock)

    def _message(self) -> tuple[bytes, list[bytes]]:
        document = unpack(self._changed(self._messages))
        match document:
            case [bytes(header), list(frames)] if all(type(frame) is bytes for frame in frames):
                return header, frames
        return self._random_bytes(), [self._random_bytes()]

    def _packet(self) -> bytes:
        header, frames = self._message()
        match self._chance.randrange(4), unpack(self._changed(self._packets)):
            case 0, [bytes(packet), *_]:
                return packet
            case 1, _:
                return self._random_bytes()
        lengths = struct.pack(
            f"<{len(frames) + 2}Q", len(frames) + 1, len(header), *map(len, frames)
        )
        return lengths + header + b"".join(frames)

    def _changed(self, documents: list[bytes]) -> bytes:
        data = self._chance.choice(documents)
        changed = mutate(data, 1 << 14, self._chance.randrange(1 << 32), self._flip)
        try:
            unpack(changed)
        except NotADocument:
            return data
        return changed

    def _flip(self, data: bytes) -> bytes:
        place = self._chance.randrange(len(data) + 1)
        return data[:place] + self._chance.randbytes(1) + data[place + 1 :]

    def _random_bytes(self) -> bytes:
        return self._chance.randbytes(self._chance.choice((1, 4, 9, 64, 300, 70_000)))

    @contextlib.contextmanager
    def _connected(self, kind: int) -> Iterator[zmq.Socket[bytes]]:
        endpoint = self._chance.choice([self._server.endpoint, f"ipc://{self._server.ipc_path}"])
        with self._context.socket(kind) as sock:
            if self._chance.random() < 0.3:
                # Also one that another has.
                sock.setsockopt(zmq.IDENTITY, self._chance.choice([b"twice", b"\xff" * 255]))
            sock.connect(endpoint)
            yield sock

    def _end(self, sock: socket.socket) -> None:
        match self._chance.randrange(3):
            case 0 if len(self._half_open) < HALF_OPEN_MAX:
                self._half_open.append(sock)
                return
            case 1 if sock.family != socket.AF_UNIX:
                # It is reset: what was sent and not read is lost.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()

    def _leave(self) -> None:
        for sock in self._half_open:
            sock.close()


def rss_nbytes(pid: int) -> int:
    """The memory that a process has, and shares with nobody."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("it has ended")


@pytest.fixture
def server() -> Iterator[Server]:
    with Server("--arena-mb", "16", config=config(workers=1), ipc=True) as server:
        yield server


def test_garbage_on_every_socket(server: Server) -> None:
    (broker,) = server.processes(BROKER)
    pids = sorted([broker, *server.processes(WORKER)])
    descriptors()
    with server.client() as client, Witness(client) as witness:
        with ExitStack() as stack:
            # What is made at the first of its kind stays.
            Storm(server, stack).blow(100)
        server.wait_until_idle()
        files, rss = open_files(server), rss_nbytes(broker)
        answers = witness.answers
        with ExitStack() as stack:
            Storm(server, stack).blow(700)
            assert witness.answers > answers
        server.wait_until_idle()
        wait_until(
            lambda: all(open_files(server)[pid] <= files[pid] for pid in files),
            lambda: f"{open_files(server)} are no more than {files}",
        )
        assert rss_nbytes(broker) - rss < GROWTH_MAX
    assert sorted([*server.processes(BROKER), *server.processes(WORKER)]) == pids
    assert "Traceback" not in server.log
