"""A broker's two sockets, for tests of the client's connection: it says what it is told to."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import zmq
from support.waiting import wait_until

from batchyard.wire import local, protocol
from batchyard.wire.access import Access
from batchyard.wire.arena import create_memfd
from batchyard.wire.local import LocalClosed, LocalSocket
from batchyard.wire.protocol import MessageType
from batchyard.wire.tensors import Buffer

REGION_NBYTES = 1 << 20
Received = tuple[MessageType, list[Any], list[Buffer]]


class FakeBroker:
    """Listens at an ipc path; beside it, or at an abstract name, when told to."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], epoch: int = 1) -> None:
        # Not pytest's folder: an ipc path may have 107 bytes only.
        self._folder = tempfile.TemporaryDirectory(prefix="batchyard-test-", dir="/tmp")
        self.path = str(Path(self._folder.name) / "broker")
        self.endpoint = f"ipc://{self.path}"
        self.epoch = epoch
        self._context = context
        self._listener: socket.socket | None = None
        self._accepted: list[LocalSocket] = []
        self.client = b""
        self.bind()

    def bind(self) -> None:
        """Starts to listen at the ipc path."""
        self._router = self._context.socket(zmq.ROUTER)
        self._router.bind(self.endpoint)

    def listen(self, address: str = "") -> None:
        """Listens for local clients: beside the ipc path if nothing else is said."""
        self._listener = local.listen(address or f"{self.path}.local", Access(0o600))

    def welcome(self, *more: Any, epoch: int | None = None) -> bytes:
        """A WELCOME header."""
        body = [self.epoch if epoch is None else epoch, 1 << 30, *more]
        return protocol.encode(MessageType.WELCOME, body)

    def send(self, header: bytes, frames: Sequence[bytes] = ()) -> None:
        """By ZeroMQ, to who sent last."""
        self._router.send_multipart([self.client, header, *frames])

    def receive(self) -> Received | None:
        """The next message by ZeroMQ, if there is one."""
        with contextlib.suppress(zmq.Again):
            self.client, header, *frames = self._router.recv_multipart(zmq.NOBLOCK)
            return *protocol.decode(header), list[Buffer](frames)
        return None

    def accept(self) -> LocalSocket | None:
        """A local client, if one knocks."""
        assert self._listener is not None
        with contextlib.suppress(BlockingIOError):
            sock, _ = self._listener.accept()
            sock.setblocking(False)
            client = LocalSocket(sock)
            self._accepted.append(client)
            return client
        return None

    def give_region(self, client: LocalSocket, welcome: bytes | None = None) -> None:
        """Says WELCOME to a local client, with a region."""
        fd = create_memfd(REGION_NBYTES, "batchyard-region")
        try:
            assert client.send_aside(self.welcome() if welcome is None else welcome, [], fd)
        finally:
            os.close(fd)

    def unbind(self) -> None:
        """Ends as a process does that is killed; the paths stay."""
        self._router.close(0)
        for client in self._accepted:
            client.close()
        self._accepted.clear()
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def close(self) -> None:
        """Ends, and removes the paths."""
        self.unbind()
        self._folder.cleanup()


def receive_near(client: LocalSocket) -> Received:
    """The next message that a local client sends; waits for it."""

    def look() -> Received | None:
        message = client.receive()
        return None if message is None else (*protocol.decode(message[0]), message[1])

    return wait_until(look, "the local client sends")


def has_ended(client: LocalSocket) -> bool:
    """Whether a local client has closed its end."""
    try:
        return client.receive() is not None and False
    except LocalClosed:
        return True
