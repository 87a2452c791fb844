"""A client written from ``docs/protocol.md`` alone.

It knows nothing of Batchyard's code: zmq, msgpack, struct and numpy are all it has.
"""

from __future__ import annotations

import itertools
import struct
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt
import zmq

HELLO, WELCOME, PREDICT, RESULT, CANCEL, ERROR, QUERY, ANSWER, GOODBYE = range(1, 10)
CANCELLED, INVALID_ARGUMENT, DEADLINE_EXCEEDED, NOT_FOUND, UNIMPLEMENTED = 1, 3, 4, 5, 12
TIMEOUT_MS = 10_000


class DocumentedClient:
    """One DEALER. Messages are ``(type, body, tensor frames)``."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> None:
        """Connects in the background."""
        self._socket = context.socket(zmq.DEALER)
        self._socket.linger = 0
        self.prepare(self._socket)
        self._socket.connect(endpoint)
        self._ids = itertools.count(1)

    def prepare(self, socket: zmq.Socket[bytes]) -> None:
        """Options of the socket, before it connects."""

    def send_frames(self, *frames: bytes) -> None:
        """One message, whatever it is."""
        self._socket.send_multipart(frames)

    def send(self, type_: int, body: Any, *tensors: bytes) -> None:
        """One message with a header."""
        self.send_frames(b"BY" + bytes([1, type_]) + msgpack.packb(body), *tensors)

    def receive(self) -> tuple[int, Any, list[bytes]]:
        """The next message. AssertionError when none comes."""
        header, *tensors = self.receive_frames()
        assert header[:3] == b"BY\x01"
        return header[3], msgpack.unpackb(header[4:]), tensors

    def receive_frames(self) -> list[bytes]:
        """The next message as it is."""
        assert self._socket.poll(TIMEOUT_MS), "no answer"
        return self._socket.recv_multipart()

    def assert_nothing_comes(self) -> None:
        """What was asked before HELLO and is answered at once was answered before WELCOME."""
        self.send(HELLO, [])
        assert self.receive()[0] == WELCOME

    def query(self, what: str, **arguments: Any) -> Any:
        """Asks something and waits for the answer, which must be no error."""
        query_id = next(self._ids)
        self.send(QUERY, [query_id, what, arguments])
        type_, (answered_id, number, message, answer), _ = self.receive()
        assert (type_, answered_id, number, message) == (ANSWER, query_id, 0, "")
        return answer

    def predict(self, target: bytes, rows: Any, *tensors: bytes, timeouts_us: Any = None) -> int:
        """Sends requests; their message id."""
        message_id = next(self._ids)
        self.send(PREDICT, [message_id, target, rows, timeouts_us], *tensors)
        return message_id

    def close(self) -> None:
        """Closes the socket, without a goodbye."""
        self._socket.close()


def target(model: str, *inputs: Any, version: Any = None, label: Any = None) -> bytes:
    """A packed target; ``inputs`` are ``[name, dtype, shape]``."""
    packed: bytes = msgpack.packb([model, version, label, "serving_default", 0, inputs])
    return packed


def floats(*values: float) -> bytes:
    """The frame of a float32 tensor."""
    return struct.pack(f"<{len(values)}f", *values)


def ints(*values: int) -> bytes:
    """The frame of an int64 tensor."""
    return struct.pack(f"<{len(values)}q", *values)


def pack_strings(*items: bytes) -> bytes:
    """The frame of a tensor of strings."""
    ends = itertools.accumulate(map(len, items), initial=4 * (len(items) + 1))
    return struct.pack(f"<{len(items) + 1}I", *ends) + b"".join(items)


def unpack_strings(frame: bytes, count: int) -> list[bytes]:
    """The strings in a frame, whose offsets must be as documented."""
    offsets = struct.unpack_from(f"<{count + 1}I", frame)
    assert offsets[0] == 4 * (count + 1)
    assert offsets[-1] == len(frame)
    return [frame[a:b] for a, b in itertools.pairwise(offsets)]


def as_array(output: Any, frame: bytes) -> npt.NDArray[Any]:
    """The array of an output ``[name, dtype, shape]``."""
    _, dtype, shape = output
    return np.frombuffer(frame, np.dtype(dtype).newbyteorder("<")).reshape(shape)
