"""The front socket: a ZeroMQ ROUTER that clients' DEALERs talk to."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence

import zmq

from batchyard.broker.gate import ZAP_DOMAIN, Gate
from batchyard.wire.access import Access
from batchyard.wire.endpoints import HEARTBEAT_MS, HIGH_WATER_MARK
from batchyard.wire.errors import ConfigurationError
from batchyard.wire.keys import KeyPair
from batchyard.wire.protocol import LARGE_FRAME_NBYTES
from batchyard.wire.tensors import Buffer

# As a plain number: with zmq's own flags each look would build two of them.
_POLLIN = int(zmq.POLLIN)
# What was answered still goes out when the broker stops, to those who read.
LINGER_S = 2.0
# Who has connected but not said who it is within this time has to go: it holds a descriptor.
HANDSHAKE_MS = 5_000
# Connections that the kernel may hold for us: those of strangers are not to fill it at once.
_BACKLOG = 1024
# Stands for the header of a message whose sender is not let in any more.
REVOKED = b"revoked"


class Front:
    """Made, used and closed by one thread."""

    def __init__(
        self, max_message_nbytes: int, keys: KeyPair | None = None, clients: str = ""
    ) -> None:
        """With ``keys``, who connects by TCP must know the public one, and have one itself that
        lies in the folder ``clients``. Raises ConfigurationError."""
        self._keys = keys
        _seed_routing_ids()
        self._context = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, 65_535)
        try:
            self.gate = None if keys is None else Gate(self._context, clients)
        except ConfigurationError:
            self._context.term()
            raise
        self._socket = socket = self._context.socket(zmq.ROUTER)
        # Before bind, all of them: later they would not count for what is bound already.
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.setsockopt(zmq.RCVHWM, HIGH_WATER_MARK)
        socket.setsockopt(zmq.SNDHWM, HIGH_WATER_MARK)
        socket.setsockopt(zmq.MAXMSGSIZE, max_message_nbytes)
        socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3 * HEARTBEAT_MS)
        socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        socket.setsockopt(zmq.BACKLOG, _BACKLOG)
        # Whether there was nothing when last asked, and the socket was left alone since.
        self._looked = False
        socket.setsockopt(zmq.LINGER, int(LINGER_S * 1000))

    def bind(self, endpoints: Sequence[str], access: Access) -> list[str]:
        """Binds, and returns the endpoints with their real ports. Raises ConfigurationError.

        ``access`` is that of ipc sockets' files. One socket has doors of both kinds: libzmq keeps
        for each the options that were set when it was bound.
        """
        bound = {i: self._bind_ipc(e, access) for i, e in enumerate(endpoints) if _is_ipc(e)}
        if self._keys is not None:
            # After ipc: a domain cannot be unset.
            self._require_keys(self._keys)
        bound |= {i: self._bind(e) for i, e in enumerate(endpoints) if not _is_ipc(e)}
        return [bound[i] for i in range(len(endpoints))]

    def _require_keys(self, keys: KeyPair) -> None:
        """Of clients of what is bound from now on."""
        self._socket.setsockopt(zmq.CURVE_SERVER, 1)
        self._socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)
        # Enforced: without somebody to ask libzmq would otherwise let everybody in.
        self._socket.setsockopt(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
        self._socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)

    def _bind_ipc(self, endpoint: str, access: Access) -> str:
        with access.of_new_files():
            bound = self._bind(endpoint)
        access.give(endpoint.removeprefix("ipc://"))
        return bound

    def _bind(self, endpoint: str) -> str:
        try:
            self._socket.setsockopt(zmq.IPV6, int("[" in endpoint))
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            in_use = "; is another server running there?" if error.errno == zmq.EADDRINUSE else ""
            raise ConfigurationError(f"cannot bind {endpoint}: {error.strerror}{in_use}") from error
        return self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def fileno(self) -> int:
        """Becomes readable when something may have changed; ``has_input`` says what."""
        return int(self._socket.getsockopt(zmq.FD))

    def look_again(self) -> None:
        """The descriptor is readable."""
        self._looked = False

    def has_input(self) -> bool:
        """Whether a message waits. The descriptor alone does not tell: it is edge-triggered."""
        if not self._looked:
            self._looked = not int(self._socket.getsockopt(zmq.EVENTS)) & _POLLIN
        return not self._looked

    def receive(self) -> tuple[bytes, Buffer, list[Buffer]] | None:
        """The next message as (client, header, frames); None when there is none.

        Of a client whose key was revoked the header is ``REVOKED`` itself.
        Small frames are copied out: a view of one would pin the whole chunk that libzmq read.
        Large ones are views of libzmq's own memory.
        """
        receive = self._socket.recv
        try:
            client = receive(zmq.NOBLOCK)
        except zmq.Again:
            return None
        buffers: list[Buffer] = []
        more = True
        while more:
            frame = receive(zmq.NOBLOCK, copy=False)
            more = frame.more
            buffers.append(frame.bytes if len(frame) < LARGE_FRAME_NBYTES else frame.buffer)
        if self.gate is not None and self.gate.revoked and self.gate.is_revoked(frame):
            return client, REVOKED, []
        return client, buffers[0], buffers[1:]

    def send(self, client: bytes, header: bytes, frames: list[Buffer]) -> list[zmq.MessageTracker]:
        """Sends to a client, if it is still there and reads.

        Large frames are not copied; their memory must stay as it is until the returned trackers
        are done. Raises zmq.Again when the client does not read, and
        zmq.ZMQError (EHOSTUNREACH) when it is gone.
        """
        send = self._socket.send
        # Sending takes note of what arrived meanwhile: the descriptor will not tell of it.
        self._looked = False
        send(client, zmq.SNDMORE | zmq.NOBLOCK)
        if not frames:
            send(header, zmq.NOBLOCK)
            return []
        trackers: list[zmq.MessageTracker] = []
        send(header, zmq.SNDMORE | zmq.NOBLOCK)
        last = len(frames) - 1
        for i, frame in enumerate(frames):
            flags = zmq.NOBLOCK if i == last else zmq.SNDMORE | zmq.NOBLOCK
            if len(frame) >= LARGE_FRAME_NBYTES:
                trackers.append(send(frame, flags, copy=False, track=True))
            else:
                send(frame, flags)
        return trackers

    def close(self) -> None:
        """Closes the socket, after what was sent has gone out or the linger time is over."""
        self._socket.close()
        if self.gate is not None:
            self.gate.close()
        self._context.term()


def _seed_routing_ids() -> None:
    """Has libzmq number clients from where nobody can guess.

    It takes its first number from ``rand()``, which is the same in each process unless it is
    seeded. A client may claim a number instead: that of one who just left, whose answers it would
    get; or the next one, upon which libzmq ends the process (socket_base.cpp, ``add_out_pipe``).
    """
    ctypes.CDLL(None).srand(int.from_bytes(os.urandom(4), "little"))


def _is_ipc(endpoint: str) -> bool:
    return endpoint.startswith("ipc://")
