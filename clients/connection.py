"""The sockets under a client: a ZeroMQ DEALER, the monitor that tells of its connection, and, on
the server's own machine, the short way to it (``wire.local``)."""

from __future__ import annotations

import os
import struct
from typing import Any

import zmq

from batchyard.clients import handshakes
from batchyard.clients.region import ClientRegion
from batchyard.clients.session import Via
from batchyard.wire import local, protocol
from batchyard.wire.endpoints import HEARTBEAT_MS, HIGH_WATER_MARK, check
from batchyard.wire.errors import BatchyardError
from batchyard.wire.keys import ClientCurve
from batchyard.wire.local import INLINE_NBYTES, LocalClosed, LocalSocket
from batchyard.wire.protocol import LARGE_FRAME_NBYTES, MessageType
from batchyard.wire.tensors import Buffer

CONNECT_TIMEOUT_S = 5.0
# How long the server may take to share its memory, once it has answered.
JOIN_TIMEOUT_S = 1.0
# Between two tries to connect anew when there are no descriptors.
RESET_PAUSE_S = 0.1
# Between two tries to get in where this client's keys were refused: they may be allowed again.
REFUSED_PAUSE_S = 1.0
# How long closing may take to send what was given to the socket: a goodbye.
_LINGER_MS = 200
# The monitor's first frame: the event, and a value. pyzmq has a function that reads it, and imports
# asyncio with that, which takes 20 ms.
_EVENT = struct.Struct("=hi")


class Connection:
    """Made, used and closed by one thread."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoint: str,
        curve: ClientCurve | None = None,
    ) -> None:
        """Connects in the background, by TCP with the keys of ``curve``, if there are any.

        Raises ConfigurationError for what is no endpoint.
        """
        self.endpoint = check(endpoint)
        # Why a server that is there does not let this client in, as long as both have the keys that
        # they have; or None.
        self.refusal: BatchyardError | None
        # What may be the reason that no server answers; or empty.
        self.doubt = ""
        self._curve = curve if endpoint.startswith("tcp://") else None
        # The memory that the broker shares with this client, if it does.
        self.region: ClientRegion | None = None
        # Whether the local socket was full when last asked.
        self.wants_to_send = False
        self._context = context
        self._local: LocalSocket | None = None
        self._local_is_up = False
        self._joins = False
        self._epoch: Any = None
        self._open()

    def _open(self) -> None:
        self._socket = socket = self._context.socket(zmq.DEALER)
        try:
            self._set_up(socket)
        except BaseException:
            socket.close(0)
            raise
        self.refusal = None
        self._was_up = False
        # The two ways end together: what was sent by either will not be answered.
        self._is_lost = False
        # Whether nothing more can be read from the local socket. When it can no longer be written
        # to, the server's last words may still lie in it.
        self._near_has_ended = False
        # Whether ZeroMQ's sockets had nothing when last asked, and were left alone since.
        self._looked = False

    def _set_up(self, socket: zmq.Socket[bytes]) -> None:
        socket.setsockopt(zmq.LINGER, _LINGER_MS)
        socket.setsockopt(zmq.SNDHWM, HIGH_WATER_MARK)
        socket.setsockopt(zmq.RCVHWM, HIGH_WATER_MARK)
        # A server whose machine vanished without a word is noticed too.
        socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3 * HEARTBEAT_MS)
        socket.setsockopt(zmq.RECONNECT_IVL, 20)
        # Calls wait for a server that was started anew: it should not be missed for long.
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 200)
        socket.setsockopt(zmq.IPV6, int("[" in self.endpoint))
        if self._curve is not None:
            self._curve.apply(socket)
        self._monitor = socket.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | handshakes.FAILED
        )
        socket.connect(self.endpoint)

    def reset(self) -> None:
        """Connects anew, by other descriptors, after the connection was lost.

        What the sockets have not sent yet is given up: the session sends it again.
        """
        if not self._socket.closed:
            self._socket.setsockopt(zmq.LINGER, 0)
            self._close()
        self._open()

    def join(self, welcome: Buffer | None) -> None:
        """Looks for the short way to the broker that sent ``welcome``, if it is on this machine;
        None: as soon as one says it.

        It is there once ``is_settled``, and may turn out not to be.
        """
        self._joins = True
        if welcome is not None:
            self._join(welcome)

    def _join(self, welcome: Buffer) -> None:
        body = protocol.decode(welcome)[1]
        beside = local.socket_path(self.endpoint)
        addresses = [beside] if beside else []
        if len(body) > 2 and isinstance(body[2], str) and body[2]:
            addresses.append(f"\0{body[2]}")
        for address in addresses:
            self._leave_local()
            self._local = local.connect(address)
            if self._local is not None:
                self._epoch = body[0] if body else None
                return

    @property
    def is_near(self) -> bool:
        """Whether the short way is there."""
        return self._local_is_up and not self._is_lost

    @property
    def has_ended(self) -> bool:
        """Whether ``changes`` will tell of a loss that no descriptor tells of."""
        return self._is_lost

    def give_up(self) -> None:
        """Has ``changes`` tell of a loss: the connection cannot be relied on."""
        self._is_lost = self._near_has_ended = True

    @property
    def is_settled(self) -> bool:
        """Whether it is known if there is a short way."""
        return self._local is None or self._local_is_up

    def filenos(self) -> list[int]:
        """Descriptors that become readable when ``receive`` or ``changes`` may have something.

        Those of ZeroMQ are edge-triggered: ``has_input`` must be asked before each wait, or they
        may never tell. A local socket comes later than the others: see ``local_fileno``.
        """
        if self._socket.closed:
            return []
        return [int(self._socket.getsockopt(zmq.FD)), int(self._monitor.getsockopt(zmq.FD))]

    def local_fileno(self) -> int:
        """The local socket's descriptor, -1 when there is none."""
        return -1 if self._local is None else self._local.fileno()

    def has_input(self) -> bool:
        """Whether a message or a change waits, as far as no descriptor tells."""
        if self._is_lost:
            return True
        if self._looked:
            return False
        found = bool(
            int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN
            or int(self._monitor.getsockopt(zmq.EVENTS)) & zmq.POLLIN
        )
        self._looked = not found
        return found

    @property
    def must_look(self) -> bool:
        """Whether ZeroMQ's sockets were used since ``has_input`` found nothing: what arrived
        meanwhile their descriptors may never tell."""
        return not self._looked

    def look_again(self) -> None:
        """One of ZeroMQ's descriptors is readable."""
        self._looked = False

    def changes(self) -> list[bool]:
        """What became of the connection since last asked: True for up, False for lost."""
        if self._is_lost:
            return [False]
        changes: list[bool] = []
        if self._looked:
            return changes
        while int(self._monitor.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            event, value = _EVENT.unpack(self._monitor.recv_multipart(zmq.NOBLOCK)[0])
            if event & handshakes.FAILED:
                self._was_refused(event, value)
                continue
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self.doubt = ""
                self._was_up = True
                changes.append(True)
            elif self._was_up or self.refusal is not None:
                changes.append(False)
            # Else it was never there, and libzmq tries again, with pauses.
        return changes

    def _was_refused(self, event: int, value: int) -> None:
        found = handshakes.explain(event, value, self.endpoint, self._curve)
        if isinstance(found, BatchyardError):
            self.refusal = found
        elif found:
            self.doubt = found

    def hello(self) -> None:
        """Asks the broker for its WELCOME, once the connection is up."""
        self._send_far(protocol.encode(MessageType.HELLO, []), [])

    def send(self, header: bytes, frames: list[Buffer], via: Via = Via.ANY) -> bool:
        """Sends a message; False when the socket takes no more for now.

        Large frames are not copied: their memory must stay as it is until they are answered.
        """
        if self._local is None or not self._local_is_up:
            # What speaks of a region that is gone is sent otherwise after the connection's loss.
            return via is Via.LOCAL or self._send_far(header, frames)
        if via is Via.ANY and len(header) + sum(map(len, frames)) > INLINE_NBYTES:
            return self._send_far(header, frames)
        try:
            sent = self._local.send(header, frames)
        except LocalClosed:
            self._is_lost = True
            return True
        self.wants_to_send = not sent
        if sent and via is Via.BOTH:
            self._send_far(header, frames)
        return sent

    def _send_far(self, header: bytes, frames: list[Buffer]) -> bool:
        self._looked = False
        send = self._socket.send
        try:
            send(header, zmq.NOBLOCK | (zmq.SNDMORE if frames else 0))
        except zmq.Again:
            return False
        last = len(frames) - 1
        for i, frame in enumerate(frames):
            flags = 0 if i == last else zmq.SNDMORE
            # Once its first frame is taken, ZeroMQ takes a message whole.
            send(frame, flags, copy=len(frame) < LARGE_FRAME_NBYTES)
        return True

    def receive(self) -> tuple[Buffer, list[Buffer]] | None:
        """The next message as (header, frames); None when there is none.

        Frames own their memory, and arrays over them can be written to.
        """
        if self._local is not None and not self._near_has_ended:
            message = self._receive_near(self._local)
            if message is not None:
                return message
        # Once one way has ended, what came by the other is still looked for.
        return None if self._looked and not self._is_lost else self._receive_far()

    def _receive_near(self, near: LocalSocket) -> tuple[Buffer, list[Buffer]] | None:
        try:
            received = near.receive_with_fd()
            if received is None:
                return None
            header, frames, fd = received
            if self._local_is_up:
                if fd is not None:
                    os.close(fd)
                return header, frames
            self._welcomed_near(header, fd)
        except LocalClosed:
            if self._local_is_up:
                # What was sent that way will not be answered.
                self._is_lost = self._near_has_ended = True
            else:
                self._leave_local()
        return None

    def _welcomed_near(self, welcome: Buffer, fd: int | None) -> None:
        """The first message on the local socket: the same broker's WELCOME, with a region."""
        try:
            type_, body = protocol.decode(welcome)
            if type_ is not MessageType.WELCOME or body[:1] != [self._epoch]:
                self._leave_local()
                return
            self._local_is_up = True
            if fd is not None:
                self.region = ClientRegion(fd)
        except (BatchyardError, OSError, ValueError):
            self._leave_local()
        finally:
            if fd is not None:
                os.close(fd)

    def _receive_far(self) -> tuple[Buffer, list[Buffer]] | None:
        receive = self._socket.recv
        try:
            frame = receive(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return None
        header = frame.bytes
        frames: list[Buffer] = []
        while frame.more:
            frame = receive(zmq.NOBLOCK, copy=False)
            frames.append(
                bytearray(frame.buffer) if len(frame) < LARGE_FRAME_NBYTES else frame.buffer
            )
        if self._joins and self._local is None and is_welcome(header):
            # The same server, or another, after the connection was lost.
            self._join(header)
        return header, frames

    def close(self) -> None:
        """Says goodbye and closes all sockets."""
        if not self._socket.closed:
            self._send_far(protocol.encode(MessageType.GOODBYE, []), [])
            self._close()

    def _close(self) -> None:
        self._leave_local()
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close()

    def _leave_local(self) -> None:
        if self._local is not None:
            self._local.close()
        self._local = None
        self._local_is_up = False
        if self.region is not None:
            self.region.close()
        self.region = None


def is_welcome(header: Buffer) -> bool:
    """Whether a message is a broker's WELCOME."""
    try:
        return protocol.decode(header)[0] is MessageType.WELCOME
    except BatchyardError:
        # What listens there is no Batchyard, or one of another version.
        return False
