"""A client of the local socket written by hand: it does whatever a test tells it to."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from support.waiting import DEADLINE_S

from batchyard.wire import protocol
from batchyard.wire.arena import Mapping
from batchyard.wire.local import LocalClosed, LocalSocket
from batchyard.wire.protocol import InputHeader, MessageType, RegionPlaces, Target
from batchyard.wire.tensors import Buffer

Answer = tuple[MessageType, list[Any], list[Buffer]]


def target(model: str, **inputs: tuple[str, tuple[int | None, ...]]) -> bytes:
    """A packed target; of each input the dtype and the shape."""
    headers = tuple(InputHeader(name, *spec) for name, spec in inputs.items())
    return Target(model, None, None, "serving_default", 0, headers).encode()


class LocalClient:
    """Connected, and past the broker's WELCOME."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self._local = LocalSocket(self.socket)
        self.region: Mapping | None = None
        self.region_fd = -1
        try:
            self.socket.connect(address)
            received = self._wait()
            assert received is not None, "no WELCOME"
        except BaseException:
            self.socket.close()
            raise
        header, _, fd = received
        assert protocol.decode(header)[0] is MessageType.WELCOME
        if fd is not None:
            self.region, self.region_fd = Mapping(fd), fd

    def array(self, offset: int, shape: tuple[int, ...], dtype: str) -> npt.NDArray[Any]:
        """An array in the region."""
        assert self.region is not None
        memory = np.frombuffer(self.region.memory, np.uint8)
        return np.ndarray(shape, dtype, memory, offset)

    def send(self, header: bytes, frames: Sequence[Buffer] = ()) -> None:
        """Sends a message. LocalClosed when the broker has closed its end."""
        until = time.monotonic() + DEADLINE_S
        while not self._local.send(header, list(frames)):
            assert time.monotonic() < until, "the broker does not read"
            select.select([], [self.socket], [], 0.1)

    def send_packet(self, packet: bytes) -> None:
        """Sends bytes that need not be a message."""
        self.socket.sendall(packet)

    def predict(
        self,
        to: bytes,
        rows: Any,
        *frames: Buffer,
        message_id: int = 1,
        inputs: list[list[int] | None] | None = None,
        replies: list[tuple[int, int]] | None = None,
    ) -> None:
        """A PREDICT message, which speaks of the region when ``inputs`` are given."""
        places = None if inputs is None else RegionPlaces(inputs, replies)
        self.send(protocol.encode_predict(message_id, to, rows, None, places), frames)

    def receive(self) -> Answer | None:
        """The next message; None at the end of the connection. AssertionError for neither."""
        received = self._wait()
        if received is None:
            return None
        header, frames, fd = received
        assert fd is None
        return *protocol.decode(header), frames

    def answer(self) -> Answer:
        """The next message, which must come."""
        received = self.receive()
        assert received is not None, "the broker closed the connection"
        return received

    def result(self) -> protocol.Result:
        """The next message, which must be RESULT."""
        type_, body, _ = self.answer()
        assert type_ is MessageType.RESULT, body
        return protocol.decode_result(body)

    def error(self) -> protocol.Failure:
        """The next message, which must be ERROR."""
        type_, body, _ = self.answer()
        assert type_ is MessageType.ERROR, type_
        return protocol.decode_error(body)

    def answers_until_welcome(self) -> list[Answer]:
        """All that the broker has to say by the time that it looks at what was sent so far."""
        self.send(protocol.encode(MessageType.HELLO, []))
        answers: list[Answer] = []
        while not answers or answers[-1][0] is not MessageType.WELCOME:
            answers.append(self.answer())
        return answers[:-1]

    def was_dropped(self) -> bool:
        """Whether the broker closes the connection, after what it may say before."""
        while self.receive() is not None:
            pass
        return True

    def close(self) -> None:
        """Goes without a word."""
        self.socket.close()
        if self.region is not None:
            self.region.close()
            os.close(self.region_fd)
            self.region = None

    def __enter__(self) -> LocalClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wait(self) -> tuple[Buffer, list[Buffer], int | None] | None:
        until = time.monotonic() + DEADLINE_S
        with contextlib.suppress(LocalClosed):
            while (received := self._local.receive_with_fd()) is None:
                left = until - time.monotonic()
                assert left > 0, "no answer"
                select.select([self.socket], [], [], left)
            return received
        return None
