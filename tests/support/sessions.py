"""Drives a client's Session without a socket: calls, what was sent of them, and answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from batchyard.clients.calls import Call
from batchyard.clients.inputs import Route
from batchyard.clients.placement import Placement
from batchyard.clients.session import Message, Session, Via
from batchyard.wire import dtypes, protocol
from batchyard.wire.errors import BatchyardError
from batchyard.wire.protocol import MessageType, Predict, Result, Segment
from batchyard.wire.signatures import SignatureSpec, TensorSpec
from batchyard.wire.tensors import Buffer, decode, encode

NEVER = float("inf")


class Promise:
    """Takes one answer, and fails the test when it is given a second."""

    def __init__(self) -> None:
        self.result: Any = None
        self.error: BaseException | None = None
        self._done = False

    def done(self) -> bool:
        return self._done

    def set_result(self, result: Any, /) -> None:
        assert not self._done
        self._done = True
        self.result = result

    def set_exception(self, exception: BaseException, /) -> None:
        assert not self._done
        self._done = True
        self.error = exception


@dataclass
class Sent:
    """A PREDICT message as the broker would read it."""

    predict: Predict
    frames: list[Buffer]
    via: Via = Via.ANY

    @property
    def id(self) -> int:
        return self.predict.message_id

    def values(self, dtype: str = "float32", i: int = 0) -> list[Any]:
        """The elements of a frame of numbers."""
        frame = self.frames[i]
        values: list[Any] = decode(frame, dtype, (len(frame) // dtypes.itemsize(dtype),)).tolist()
        return values


def make_call(
    values: Sequence[Any],
    *,
    target: bytes = b"t",
    rows: list[int] | int | None = 0,
    deadline: float = NEVER,
    dtype: str = "float32",
    width: int = 1,
    placement: Placement | None = None,
) -> Call:
    """A call with one input of ``values``, one to a row (``width`` times, to make it large).

    ``rows`` is, as in ``Call``, a list for several requests or None where nothing is batched;
    left out, all rows are one request's.
    """
    array = np.repeat(np.array(values, dtypes.to_numpy(dtype)), width)
    each = [len(values)] if rows == 0 else rows
    assert not isinstance(each, int)
    total = sum(each or [])
    route = make_route([dtype], [("float32", None)], batched=each is not None)
    return Call(route, target, [array], each, total, deadline, Promise(), placement)


def make_route(
    inputs: Sequence[str],
    outputs: Sequence[tuple[str, tuple[int | None, ...] | None]] = (),
    *,
    batched: bool = True,
) -> Route:
    """The route of a signature with inputs of these dtypes and any shape, and such outputs."""
    specs = tuple(TensorSpec(f"x{i}", dtype, None) for i, dtype in enumerate(inputs))
    results = tuple(TensorSpec(f"y{i}", dtype, shape) for i, (dtype, shape) in enumerate(outputs))
    return Route("m", None, None, 0, SignatureSpec("s", specs, results, batched), 1, 6400)


def promise_of(call: Call) -> Promise:
    """The promise that ``make_call`` made."""
    assert isinstance(call.promise, Promise)
    return call.promise


def error_of(call: Call) -> BatchyardError:
    """The error that a call ended with."""
    error = promise_of(call).error
    assert isinstance(error, BatchyardError)
    return error


def outputs_of(call: Call) -> dict[str, Any]:
    """The outputs that a call of one request ended with, as lists."""
    result = promise_of(call).result
    return {name: array.tolist() for name, array in result.items()}


def read(message: Message) -> Sent:
    """A message that must be PREDICT."""
    header, frames, via = message
    type_, body = protocol.decode(header)
    assert type_ is MessageType.PREDICT
    return Sent(protocol.decode_predict(body), frames, via)


def flush(session: Session, *calls: Call, now: float = 0.0) -> list[Sent]:
    """What is sent for calls that are ready together."""
    return [read(message) for message in session.flush(calls, now)]


def answer(session: Session, segments: list[Segment], **outputs: Any) -> None:
    """A RESULT arrives: arrays by output name, the rows of all segments one after the other."""
    arrays = {name: np.asarray(value) for name, value in outputs.items()}
    names: Mapping[str, str] = {
        name: dtypes.from_numpy(array.dtype) or "" for name, array in arrays.items()
    }
    headers = [(name, names[name], array.shape) for name, array in arrays.items()]
    frames = [encode(array, names[name]) for name, array in arrays.items()]
    session.receive(protocol.encode_result(Result(segments, 1, headers)), frames)


def refuse(session: Session, segments: list[Segment], error: BatchyardError) -> None:
    """An ERROR arrives."""
    session.receive(protocol.encode_error(segments, error), [])


def welcome(session: Session, epoch: int = 1, max_message_nbytes: int = 1 << 30) -> None:
    """A WELCOME arrives: the connection is up."""
    session.receive(protocol.encode(MessageType.WELCOME, [epoch, max_message_nbytes]), [])


def drain(session: Session) -> None:
    """DRAINING arrives."""
    session.receive(protocol.encode(MessageType.DRAINING, []), [])
