"""How the calls that share a message are written down as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from batchyard.clients.calls import NEVER, Call
from batchyard.clients.inputs import Array
from batchyard.wire import dtypes, protocol
from batchyard.wire.protocol import RegionPlaces
from batchyard.wire.tags import Tag
from batchyard.wire.tensors import Buffer, encode, encode_strings

# More than a century: timeouts that no integer of msgpack's holds mean the same.
_TIMEOUT_US_MAX = 1 << 52


def encode_calls(
    message_id: int,
    calls: list[Call],
    places: RegionPlaces | None,
    now: float,
    resent: bool = False,
    with_tags: bool = False,
) -> tuple[bytes, list[Buffer]]:
    """The header and the frames of the PREDICT message that carries ``calls``.

    ``with_tags``: the server takes what callers named them.
    """
    first = calls[0]
    rows: int | list[int] | None
    if first.rows is None:
        rows = None
    else:
        rows = [n for call in calls for n in call.rows or ()]
        if len(rows) == sum(call.total_rows for call in calls):
            rows = len(rows)
    frames: list[Buffer] = []
    for i, dtype in enumerate(first.input_dtypes):
        if places is not None and places.inputs[i] is not None:
            continue
        if len(calls) == 1:
            frames.append(encode(first.arrays[i], dtype))
        elif dtype == dtypes.STRING:
            frames.append(_join_columns([call.arrays[i] for call in calls]))
        else:
            frames.append(b"".join([encode(call.arrays[i], dtype) for call in calls]))
    timeouts = _timeouts_us(calls, now)
    tags = _tags(calls) if with_tags else ()
    header = protocol.encode_predict(message_id, first.target, rows, timeouts, places, resent, tags)
    return header, frames


def region_places(calls: list[Call]) -> RegionPlaces | None:
    """What a message says of the region, for calls that are placed alike."""
    placements = [call.placement for call in calls if call.placement is not None]
    if not placements:
        return None
    inputs: list[list[int] | None] = []
    for offsets in zip(*(placement.offsets for placement in placements), strict=True):
        inputs.append(None if offsets[0] is None else list(offsets))
    if placements[0].reply is None:
        return RegionPlaces(inputs, None)
    replies = [(p.reply_offset, p.reply.nbytes) for p in placements if p.reply is not None]
    return RegionPlaces(inputs, replies)


def _tags(calls: list[Call]) -> Sequence[Tag]:
    if not [call for call in calls if call.label is not None]:
        return ()
    tags: list[Tag] = []
    first = 0
    for call in calls:
        if call.label is not None:
            span = call.label.span
            traceparent = None if span is None else span.traceparent
            tags.append(Tag(first, call.count, call.label.request_id, traceparent))
        first += call.count
    return tags


def _timeouts_us(calls: list[Call], now: float) -> int | list[int | None] | None:
    """Microseconds left, as the protocol has them."""
    if all(call.deadline == NEVER for call in calls):
        return None
    left = [
        None if c.deadline == NEVER else min(int((c.deadline - now) * 1e6), _TIMEOUT_US_MAX)
        for c in calls
    ]
    if len(calls) == 1:
        return left[0]
    return [us for us, call in zip(left, calls, strict=True) for _ in range(call.count)]


def _join_columns(arrays: Sequence[Array]) -> Buffer:
    items: list[Any] = []
    for array in arrays:
        items.extend(array.ravel().tolist())
    return encode_strings(items)
