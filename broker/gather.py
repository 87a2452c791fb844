"""Puts the rows of a batch side by side into its block: the one copy that an input gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from batchyard.broker.events import Batch
from batchyard.broker.layout import TensorSlot, joined_runs
from batchyard.broker.queue import Part, RegionRows, RequestGroup
from batchyard.wire import dtypes
from batchyard.wire.protocol import LARGE_FRAME_NBYTES
from batchyard.wire.tensors import (
    Buffer,
    decode_strings,
    element_count,
    encode_strings,
    join_strings,
)
from batchyard.wire.work import ARENA, PlacedInput

Array = npt.NDArray[Any]


@dataclass(slots=True)
class Gathered:
    """Where the inputs of a batch lie, and the copies that its worker has to make first.

    Both as ``wire.work.Execute`` wants them.
    """

    inputs: list[PlacedInput]
    copies: list[tuple[int, int, int, int]]


def gather(memory: memoryview, batch: Batch) -> Gathered:
    """Writes what came in frames into the arena, of which ``memory`` is all.

    What lies in regions is left to the worker: so that cost spreads over workers. What can be
    read in place is copied by nobody.
    """
    gathered = Gathered([], [])
    specs = batch.lane.signature.inputs
    for i, slot in enumerate(batch.layout.inputs):
        if slot.region is not None:
            placed = (slot.region.id, slot.offset, slot.nbytes)
        else:
            start = batch.block.offset + slot.offset
            target = memory[start : start + slot.nbytes]
            placed = (ARENA, start, _write(target, start, i, slot, batch, gathered))
        gathered.inputs.append((specs[i].name, slot.dtype, slot.shape, *placed))
    return gathered


def _write(
    target: memoryview, start: int, i: int, slot: TensorSlot, batch: Batch, gathered: Gathered
) -> int:
    """Fills a slot, which begins at ``start`` of the arena; how many bytes it has."""
    lane = batch.lane
    parts = batch.parts
    if not lane.signature.batched:
        source = parts[0].group.sources[i]
        if isinstance(source, RegionRows):
            gathered.copies.append((source.region.id, source.offsets[0], start, slot.nbytes))
            return slot.nbytes
        return _write_runs(target, [source])
    if not lane.has_fixed_rows:
        if any(part.group.shapes[i][1:] != slot.shape[1:] for part in parts):
            return _write_padded(target, i, slot, parts)
        if slot.dtype == dtypes.STRING:
            return _write_strings(target, i, slot, batch)
    row_nbytes = slot.nbytes // slot.shape[0]
    padding = batch.layout.padded_rows - batch.rows
    buffers: list[Buffer] = []
    for part in parts:
        source = part.group.sources[i]
        if isinstance(source, RegionRows):
            return _write_mixed(target, start, i, slot, batch, gathered)
        if part.rows != part.group.total_rows:
            source = _rows_of(source, part, row_nbytes)
        buffers.append(source)
    if padding:
        # A row of the batch itself: what the model makes of it, it makes of a neighbour too.
        buffers.append(bytes(memoryview(buffers[-1])[-row_nbytes:]) * padding)
    return _write_runs(target, buffers)


def _write_mixed(
    target: memoryview, start: int, i: int, slot: TensorSlot, batch: Batch, gathered: Gathered
) -> int:
    """Rows some or all of which lie in regions."""
    row_nbytes = slot.nbytes // slot.shape[0]
    padding = batch.layout.padded_rows - batch.rows
    place = 0
    for part in batch.parts:
        source = part.group.sources[i]
        if not isinstance(source, RegionRows):
            rows = _rows_of(source, part, row_nbytes)
            target[place : place + len(rows)] = rows
            place += len(rows)
            continue
        for region, offset, nbytes in joined_runs(i, [part], row_nbytes, slot.shape[1:]) or ():
            gathered.copies.append((region.id, offset, start + place, nbytes))
            place += nbytes
    if isinstance(source, RegionRows):
        last = offset + nbytes - row_nbytes
        for row in range(padding):
            copy = (region.id, last, start + place + row * row_nbytes, row_nbytes)
            gathered.copies.append(copy)
    else:
        target[place:] = bytes(memoryview(rows)[-row_nbytes:]) * padding
    return slot.nbytes


def _rows_of(frame: Buffer, part: Part, row_nbytes: int) -> memoryview:
    start = part.row_start * row_nbytes
    return memoryview(frame)[start : start + part.rows * row_nbytes]


def _write_strings(target: memoryview, i: int, slot: TensorSlot, batch: Batch) -> int:
    width = element_count(slot.shape[1:])
    runs: list[tuple[Buffer, int, int]] = []
    for part in batch.parts:
        frame = part.group.sources[i]
        assert not isinstance(frame, RegionRows)  # Strings never lie in regions.
        runs.append((frame, part.row_start * width, (part.row_start + part.rows) * width))
    frame, _, stop = runs[-1]
    runs += [(frame, stop - width, stop)] * (batch.layout.padded_rows - batch.rows)
    return _write_runs(target, [join_strings(runs)])


def _write_runs(target: memoryview, buffers: Sequence[Buffer]) -> int:
    """Writes buffers one after the other. Small ones are joined first: one call, not many."""
    if len(buffers) == 1:
        buffer = buffers[0]
        target[: len(buffer)] = buffer
        return len(buffer)
    nbytes = sum(map(len, buffers))
    if nbytes < LARGE_FRAME_NBYTES:
        target[:nbytes] = b"".join(buffers)
        return nbytes
    start = 0
    for buffer in buffers:
        target[start : start + len(buffer)] = buffer
        start += len(buffer)
    return nbytes


def _write_padded(target: memoryview, i: int, slot: TensorSlot, parts: Sequence[Part]) -> int:
    """Rows of different lengths, padded as TensorFlow Serving does: with the first element of
    the request's own tensor, at the end of each dimension."""
    is_string = slot.dtype == dtypes.STRING
    out = (
        np.empty(slot.shape, object)
        if is_string
        else np.frombuffer(target, dtypes.to_numpy(slot.dtype)).reshape(slot.shape)
    )
    row = 0
    for part in parts:
        group = part.group
        whole = _whole(i, group, out.dtype)
        for request in range(part.first, part.first + part.count):
            first, end = group.row_start(request), group.row_start(request + 1)
            given = (
                _region_rows(i, group, request, out.dtype) if whole is None else whole[first:end]
            )
            start, stop = max(first, part.row_start), min(end, part.row_start + part.rows)
            rows = stop - start
            # A request's padding must not depend on what travelled in the same message.
            out[row : row + rows] = given.flat[0]
            inner = (slice(row, row + rows), *(slice(dim) for dim in given.shape[1:]))
            out[inner] = given[start - first : stop - first]
            row += rows
    out[row:] = out[row - 1]
    if not is_string:
        return slot.nbytes
    return _write_runs(target, [encode_strings(out.ravel().tolist())])


def _whole(i: int, group: RequestGroup, dtype: np.dtype) -> Array | None:
    """All rows of a group that came in a frame."""
    source = group.sources[i]
    if isinstance(source, RegionRows):
        return None
    if dtype.hasobject:
        return decode_strings(source, element_count(group.shapes[i])).reshape(group.shapes[i])
    return np.frombuffer(source, dtype).reshape(group.shapes[i])


def _region_rows(i: int, group: RequestGroup, request: int, dtype: np.dtype) -> Array:
    """One request's rows where they lie in a region."""
    source = group.sources[i]
    assert isinstance(source, RegionRows)
    rows = group.row_start(request + 1) - group.row_start(request)
    shape = (rows, *group.shapes[i][1:])
    return np.ndarray(shape, dtype, source.region.memory, source.offsets[request])
