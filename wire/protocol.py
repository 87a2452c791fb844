"""The messages between a client and the broker. ``docs/protocol.md`` describes them for people.

A message is a header frame and, for tensors, one frame each. The header is ``b"BY"``, a version
byte, a type byte and a msgpack array. This module only encodes, decodes and checks types; what
a message means is checked by the broker.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import accumulate
from typing import Any

import msgpack

from batchyard.wire import dtypes
from batchyard.wire.arena import align
from batchyard.wire.errors import BatchyardError, InvalidArgument, Unimplemented, shortened
from batchyard.wire.tags import Tag, Timing, decode_tags, decode_timings
from batchyard.wire.tensors import LARGE_NBYTES, Buffer

MAGIC = b"BY"
VERSION = 1
PREFIX_NBYTES = 4

PRIORITY_MIN, PRIORITY_MAX = -10, 10
NAME_MAX = 512
RANK_MAX = 32
INPUTS_MAX = 1024
# Requests in one message. The broker keeps a few words for each.
REQUESTS_MAX = 1 << 16
# Enough for the rows and the timeouts of as many requests. A header is decoded at once.
HEADER_NBYTES_MAX = 1 << 20
# Rows in one message, so that rows without bytes are bounded too.
ROWS_MAX = 1 << 22
# A dimension, a row count or a byte count must stay far from 64 bits, so that products can be
# checked without overflow anywhere.
DIM_MAX = 1 << 40
LARGE_FRAME_NBYTES = LARGE_NBYTES
# What a broker takes that older ones of this version do not, as WELCOME names it.
TAGS = "tags"
FEATURES = [TAGS]


class MessageType(IntEnum):
    """The type byte; odd ones go to the broker, even ones to the client."""

    HELLO = 1
    WELCOME = 2
    PREDICT = 3
    RESULT = 4
    CANCEL = 5
    ERROR = 6
    QUERY = 7
    ANSWER = 8
    GOODBYE = 9
    DRAINING = 10


_PREFIXES = {type_: MAGIC + bytes((VERSION, type_)) for type_ in MessageType}
_TYPES = {prefix: type_ for type_, prefix in _PREFIXES.items()}
_unpackb = msgpack.unpackb
_PACKER = msgpack.Packer(use_bin_type=True)

# (message id, first request, count): a run of requests of one PREDICT message.
# Count 0 stands for all of them.
Segment = tuple[int, int, int]
# (name, dtype, shape) of one output.
OutputHeader = tuple[str, str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class InputHeader:
    """One input of a target. ``shape[0]`` is None where rows are counted by the message."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Target:
    """What requests are for. Equal targets encode to equal bytes, by which the broker knows them.

    At most one of ``version`` and ``label`` is given; neither means the version that is served.
    """

    model: str
    version: int | None
    label: str | None
    signature: str
    priority: int
    inputs: tuple[InputHeader, ...]

    def encode(self) -> bytes:
        """The msgpack of the target."""
        inputs = [[i.name, i.dtype, i.shape] for i in self.inputs]
        return msgpack.packb(  # type: ignore[no-any-return]
            [self.model, self.version, self.label, self.signature, self.priority, inputs]
        )

    @classmethod
    def decode(cls, data: bytes) -> Target:
        """The target in ``data``; InvalidArgument when its fields are not of the right types."""
        fields = _unpack(data, None)
        if not isinstance(fields, list) or len(fields) != 6:
            raise InvalidArgument(
                "target: needs [model, version, label, signature, priority, inputs]"
            )
        model, version, label, signature, priority, inputs = fields
        if version is not None and label is not None:
            raise InvalidArgument("target: give a version or a label, not both")
        if not _is_int(priority, PRIORITY_MIN, PRIORITY_MAX):
            raise InvalidArgument(
                f"target: priority must be an integer from {PRIORITY_MIN} to {PRIORITY_MAX}, "
                f"not {show(priority)}"
            )
        if version is not None and not _is_int(version, 0, (1 << 63) - 1):
            raise InvalidArgument(f"target: version must be an integer, not {show(version)}")
        if not isinstance(inputs, list) or len(inputs) > INPUTS_MAX:
            raise InvalidArgument(f"target: inputs must be an array of at most {INPUTS_MAX}")
        return cls(
            model=_name(model, "model"),
            version=version,
            label=None if label is None else _name(label, "label"),
            signature=_name(signature, "signature"),
            priority=priority,
            inputs=tuple(_input_header(item) for item in inputs),
        )


@dataclass(slots=True)
class Predict:
    """Requests for one target.

    ``rows`` is None for one request whose target gives whole shapes, the number of requests
    when each has one row, or a list with the rows of each. ``timeouts_us`` is None for no
    deadline, the microseconds left to all, or a list with those left to each (None: no
    deadline). ``resent`` says that a broker, this one or another, may have got the message before.
    """

    message_id: int
    target: bytes
    rows: int | list[int] | None
    timeouts_us: int | list[int | None] | None
    region: RegionPlaces | None = None
    resent: bool = False
    tags: tuple[Tag, ...] = ()

    @property
    def count(self) -> int:
        """How many requests these are."""
        return count_of(self.rows)


@dataclass(slots=True)
class RegionPlaces:
    """Which tensors of a PREDICT message lie in the client's region, and where.

    ``inputs`` has, for each of the target's inputs, None when it travels as a frame, or the
    offset of each request's rows. ``replies`` is None, or has ``(offset, nbytes)`` for each
    request: where its outputs may be written (see ``reply_offsets``).
    """

    inputs: list[list[int] | None]
    replies: list[tuple[int, int]] | None


@dataclass(slots=True)
class Result:
    """The outputs of one or more segments, their rows one after the other in each output.

    With ``in_region`` there are no frames: each request's outputs lie where its PREDICT message
    said that they may. ``queued_rows`` is how many rows wait for the model in the broker.
    ``timings`` are of segments with requests that are traced.
    """

    segments: list[Segment]
    version: int
    outputs: list[OutputHeader]
    in_region: bool = False
    queued_rows: int = 0
    timings: Sequence[Timing] = ()


@dataclass(slots=True)
class Failure:
    """The typed error that is the answer to the segments; none: to the connection itself."""

    segments: list[Segment]
    number: int
    message: str


def encode(type_: MessageType, body: Sequence[Any]) -> bytes:
    """A header frame."""
    return _PREFIXES[type_] + _PACKER.pack(body)  # type: ignore[no-any-return]


def decode(header: Buffer) -> tuple[MessageType, list[Any]]:
    """The type and the body of a header frame.

    Raises InvalidArgument for what is no header, Unimplemented for another protocol version.
    """
    type_ = _TYPES.get(bytes(header[:PREFIX_NBYTES]))
    if type_ is None or len(header) > HEADER_NBYTES_MAX:
        raise _unreadable(header)
    body = _unpack(header[PREFIX_NBYTES:], type_)
    if type(body) is not list:
        raise InvalidArgument(f"{type_.name} header: needs a msgpack array")
    return type_, body


def _unreadable(header: Buffer) -> BatchyardError:
    head = bytes(header[:PREFIX_NBYTES])
    if len(header) > HEADER_NBYTES_MAX:
        return InvalidArgument(
            f"the header has {len(header)} bytes, may have at most {HEADER_NBYTES_MAX}"
        )
    if len(head) < PREFIX_NBYTES or head[:2] != MAGIC:
        return InvalidArgument("not a Batchyard message: the first frame must begin with 'BY'")
    if head[2] != VERSION:
        return Unimplemented(f"protocol version {head[2]} is not spoken here, only {VERSION}")
    return InvalidArgument(f"message type {head[3]} is unknown")


def encode_predict(
    message_id: int,
    target: bytes,
    rows: int | list[int] | None,
    timeouts_us: int | list[int | None] | None,
    region: RegionPlaces | None = None,
    resent: bool = False,
    tags: Sequence[Tag] = (),
) -> bytes:
    """The header of a PREDICT message. Only brokers whose WELCOME says so take ``tags``."""
    places = None if region is None else (region.inputs, region.replies)
    if tags:
        body = (message_id, target, rows, timeouts_us, places, resent, tags)
        return encode(MessageType.PREDICT, body)
    if resent:
        return encode(MessageType.PREDICT, (message_id, target, rows, timeouts_us, places, True))
    if places is None:
        return encode(MessageType.PREDICT, (message_id, target, rows, timeouts_us))
    return encode(MessageType.PREDICT, (message_id, target, rows, timeouts_us, places))


def decode_predict(body: list[Any]) -> Predict:
    """The fields of a PREDICT body, their types checked; InvalidArgument otherwise."""
    if not 4 <= len(body) <= 7:
        raise InvalidArgument(
            "PREDICT header: needs [message_id, target, rows, timeouts_us], and may have the "
            "region's part, whether it is resent, and tags"
        )
    message_id, target, rows, timeouts = body[:4]
    if type(message_id) is not int or message_id < 0:
        raise InvalidArgument("PREDICT header: message_id must be an unsigned integer")
    if type(target) is not bytes:
        raise InvalidArgument("PREDICT header: target must be msgpack in a bin")
    if type(rows) is list:
        if not 0 < len(rows) <= REQUESTS_MAX or not all(_is_int(n, 1, DIM_MAX) for n in rows):
            raise InvalidArgument(
                f"PREDICT header: rows must list 1 to {REQUESTS_MAX} positive integers"
            )
    elif rows is not None and not _is_int(rows, 1, REQUESTS_MAX):
        raise InvalidArgument(
            f"PREDICT header: rows must be nil, 1 to {REQUESTS_MAX} one-row requests, or a list"
        )
    if type(timeouts) is list:
        count = count_of(rows)
        if len(timeouts) != count or not all(t is None or _is_int(t) for t in timeouts):
            raise InvalidArgument(
                f"PREDICT header: timeouts_us must list an integer or nil for each of {count} "
                "requests"
            )
    elif timeouts is not None and not _is_int(timeouts):
        raise InvalidArgument("PREDICT header: timeouts_us must be nil, an integer or a list")
    if len(body) == 4:
        return Predict(message_id, target, rows, timeouts)
    region = None
    if body[4] is not None:
        region = _region_places(body[4], count_of(rows))
    resent = body[5] if len(body) > 5 else False
    if type(resent) is not bool:
        raise InvalidArgument("PREDICT header: resent must be a bool")
    tags = decode_tags(body[6], count_of(rows)) if len(body) > 6 else ()
    return Predict(message_id, target, rows, timeouts, region, resent, tags)


def _region_places(places: Any, count: int) -> RegionPlaces:
    if type(places) is not list or len(places) != 2 or type(places[0]) is not list:
        raise InvalidArgument("PREDICT header: the region's part needs [inputs, replies]")
    inputs, replies = places
    for offsets in inputs:
        if offsets is not None and not (
            type(offsets) is list
            and len(offsets) == count
            and all(type(offset) is int and 0 <= offset <= DIM_MAX for offset in offsets)
        ):
            raise InvalidArgument(
                f"PREDICT header: an input in the region needs an offset for each of {count} "
                "requests"
            )
    if replies is None:
        return RegionPlaces(inputs, None)
    if (
        type(replies) is not list
        or len(replies) != count
        or not all(
            type(reply) is list and len(reply) == 2 and all(_is_int(n, 0, DIM_MAX) for n in reply)
            for reply in replies
        )
    ):
        raise InvalidArgument(
            f"PREDICT header: replies need [offset, nbytes] for each of {count} requests"
        )
    return RegionPlaces(inputs, [(offset, nbytes) for offset, nbytes in replies])


def count_of(rows: int | list[int] | None) -> int:
    """How many requests a PREDICT message with these ``rows`` has."""
    return 1 if rows is None else rows if type(rows) is int else len(rows)  # type: ignore[arg-type]


def reply_offsets(nbytes: Sequence[int]) -> list[int]:
    """Where outputs of so many bytes begin in the reply space of one request.

    They lie in their order, each 64-byte aligned; what comes after the last is what all take.
    """
    return [0, *accumulate(align(n) for n in nbytes)]


def encode_result(result: Result) -> bytes:
    """The header of a RESULT message."""
    body = (result.segments, result.version, result.outputs, result.in_region, result.queued_rows)
    if result.timings:
        return encode(MessageType.RESULT, (*body, result.timings))
    return encode(MessageType.RESULT, body)


def decode_result(body: list[Any]) -> Result:
    """The fields of a RESULT body; raises what it may when it is none."""
    segments, version, outputs = body[:3]
    return Result(
        [(s[0], s[1], s[2]) for s in segments],
        version,
        [(name, dtype, tuple(shape)) for name, dtype, shape in outputs],
        len(body) > 3 and bool(body[3]),
        body[4] if len(body) > 4 and type(body[4]) is int else 0,
        decode_timings(body[5]) if len(body) > 5 else (),
    )


def encode_error(segments: Sequence[Segment], error: BatchyardError) -> bytes:
    """The header of an ERROR message; no segments blame the connection."""
    return encode(MessageType.ERROR, (segments, error.number, shortened(error.message)))


def decode_error(body: list[Any]) -> Failure:
    """The fields of an ERROR body."""
    segments, number, message = body
    return Failure([(s[0], s[1], s[2]) for s in segments], number, message)


def decode_segments(body: list[Any]) -> list[Segment]:
    """The segments of a CANCEL body; InvalidArgument when it holds anything else."""
    for segment in body:
        if (
            not isinstance(segment, list)
            or len(segment) != 3
            or not all(_is_int(n, 0) for n in segment)
        ):
            raise InvalidArgument("CANCEL header: needs arrays [message_id, first, count]")
    return [(s[0], s[1], s[2]) for s in body]


def message_id_of(body: list[Any]) -> int | None:
    """The message id of a PREDICT or QUERY body that may be wrong otherwise."""
    return body[0] if body and type(body[0]) is int and body[0] >= 0 else None


def _unpack(data: Buffer, type_: MessageType | None) -> Any:
    try:
        return _unpackb(data, raw=False, strict_map_key=True)
    except Exception as error:
        # msgpack raises ValueError, its own exceptions and UnicodeDecodeError for bad input,
        # and RecursionError for a nesting bomb.
        what = "target" if type_ is None else f"{type_.name} header"
        raise InvalidArgument(f"{what}: not msgpack ({error or type(error).__name__})") from None


def _is_int(value: Any, low: int | None = None, high: int | None = None) -> bool:
    return (
        type(value) is int
        and (low is None or value >= low)
        and (high is None or value <= high)
        and -DIM_MAX * DIM_MAX < value < DIM_MAX * DIM_MAX
    )


def _name(value: Any, what: str) -> str:
    if not isinstance(value, str) or len(value) > NAME_MAX:
        raise InvalidArgument(
            f"target: {what} must be a string of at most {NAME_MAX} characters, not {show(value)}"
        )
    return value


def _input_header(item: Any) -> InputHeader:
    if not isinstance(item, list) or len(item) != 3:
        raise InvalidArgument("target: each input must be [name, dtype, shape]")
    name, dtype, shape = item
    name = _name(name, "an input's name")
    if not isinstance(dtype, str) or not dtypes.is_known(dtype):
        raise InvalidArgument(
            f"input {name!r}: dtype {show(dtype)} is unknown; known are {', '.join(dtypes.NAMES)}"
        )
    if (
        not isinstance(shape, list)
        or len(shape) > RANK_MAX
        or not all(
            _is_int(dim, 0, DIM_MAX) or (dim is None and i == 0) for i, dim in enumerate(shape)
        )
    ):
        raise InvalidArgument(
            f"input {name!r}: shape must be at most {RANK_MAX} sizes, of which only the first may "
            f"be nil, not {show(shape)}"
        )
    return InputHeader(name, dtype, tuple(shape))


def show(value: Any) -> str:
    """A value that somebody sent, fit for a message: short, whatever it is."""
    try:
        text = repr(value)
    except RecursionError:
        # msgpack takes deeper nesting than repr.
        text = "something deeply nested"
    return text if len(text) <= 80 else text[:77] + "..."
