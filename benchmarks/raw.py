"""A client without the SDK: one ZeroMQ socket that sends the frames of one-row requests."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from itertools import cycle

import numpy as np
import zmq

from batchyard.benchmarks.failures import BenchmarkFailed
from batchyard.benchmarks.timing import p50_us
from batchyard.wire import protocol
from batchyard.wire.keys import ClientCurve
from batchyard.wire.protocol import InputHeader, MessageType, Target

IN_FLIGHT = 256
_ROW = np.ones(1, np.float32).tobytes()
Frames = Sequence[bytes]


def one_row_requests(model: str, count: int) -> list[Frames]:
    """Messages with one request of one float each, by the ids from 1 on."""
    inputs = (InputHeader("x", "float32", (None,)),)
    target = Target(model, None, None, "serving_default", 0, inputs).encode()
    return [(protocol.encode_predict(i + 1, target, 1, None), _ROW) for i in range(count)]


def echo_per_s(endpoint: str, frames: Frames, seconds: float) -> float:
    """Round trips of these frames a second, ``IN_FLIGHT`` under way."""
    with dealer(endpoint) as socket:
        for _ in range(IN_FLIGHT):
            socket.send_multipart(frames)
        answered = 0
        started = time.perf_counter()
        while time.perf_counter() - started < seconds:
            socket.recv_multipart()
            socket.send_multipart(frames)
            answered += 1
        return answered / (time.perf_counter() - started)


def echo_p50_us(endpoint: str, frames: Frames, seconds: float) -> float:
    """The median of one round trip at a time."""
    with dealer(endpoint) as socket:

        def round_trip() -> None:
            socket.send_multipart(frames)
            socket.recv_multipart()

        return p50_us(round_trip, seconds)


def requests_per_s(
    endpoint: str, model: str, seconds: float, curve: ClientCurve | None = None
) -> float:
    """What a client without coalescing gets: a message for every request."""
    # Ids may be used again once they are answered: there are more than can be in flight.
    messages = one_row_requests(model, 4 * IN_FLIGHT)
    with dealer(endpoint, curve) as socket:
        for frames in messages[:IN_FLIGHT]:
            socket.send_multipart(frames)
        sent, answered = IN_FLIGHT, 0
        started = time.perf_counter()
        while time.perf_counter() - started < seconds:
            for _ in range(_answers_in(socket.recv_multipart())):
                socket.send_multipart(messages[sent % len(messages)])
                sent += 1
                answered += 1
        return answered / (time.perf_counter() - started)


def messages_per_s(
    endpoint: str,
    messages: Sequence[Frames],
    in_flight: int,
    seconds: float,
    curve: ClientCurve | None = None,
) -> float:
    """How many of these messages are answered a second, whole, with ``in_flight`` under way."""
    turns = cycle(messages)
    with dealer(endpoint, curve) as socket:
        for _ in range(in_flight):
            socket.send_multipart(next(turns), copy=False)
        answered = 0
        started = time.perf_counter()
        while time.perf_counter() - started < seconds:
            for _ in range(_answers_in(socket.recv_multipart())):
                socket.send_multipart(next(turns), copy=False)
                answered += 1
        return answered / (time.perf_counter() - started)


def _answers_in(message: list[bytes]) -> int:
    type_, body = protocol.decode(message[0])
    if type_ is MessageType.ERROR:
        raise BenchmarkFailed(f"the server answered with an error: {protocol.decode_error(body)}")
    # Every message held one request, so each is a segment of its own.
    return len(protocol.decode_result(body).segments)


@contextlib.contextmanager
def dealer(endpoint: str, curve: ClientCurve | None = None) -> Iterator[zmq.Socket[bytes]]:
    """A socket that connects, with keys if there are any."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        if curve is not None:
            curve.apply(socket)
        socket.connect(endpoint)
        yield socket
