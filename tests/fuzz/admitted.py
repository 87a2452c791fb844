"""What admission let in, looked at again by a slow model of it that is plain to see."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
from fuzz.served import ARENA_NBYTES

from batchyard.broker.events import Batch
from batchyard.broker.gather import gather
from batchyard.broker.lane import Lane
from batchyard.broker.layout import plan_layout
from batchyard.broker.queue import Part, RegionRows, RequestGroup, by_client
from batchyard.wire import dtypes
from batchyard.wire.arena import ALIGNMENT
from batchyard.wire.blocks import Block
from batchyard.wire.protocol import ROWS_MAX, Predict
from batchyard.wire.signatures import TensorSpec, shape_fits
from batchyard.wire.tensors import Buffer
from batchyard.wire.work import ARENA

# Elements of an input: numbers as their bytes, so that not-a-numbers are equal.
Elements = npt.NDArray[np.object_]
_UNTOUCHED = 0xAA
_BLOCK = Block(ALIGNMENT * 3, ARENA_NBYTES - ALIGNMENT * 5)
# Beyond, the slow model is too slow.
_ELEMENTS_MAX = 20_000
_BATCHES_MAX = 6


@dataclass
class Checked:
    """A group, and what each of its requests feeds: for each input its rows."""

    group: RequestGroup
    rows: list[list[Elements]] | None


def check_group(group: RequestGroup, predict: Predict) -> Checked:
    """Everything that the group claims is so, and lies where it may be read."""
    signature = group.lane.signature
    each = group.rows or [1] * group.count
    assert group.count == predict.count
    assert sum(each) == group.total_rows <= ROWS_MAX
    assert min(each) > 0
    assert len(group.sources) == len(group.shapes) == len(signature.inputs)
    for spec, shape, source in zip(signature.inputs, group.shapes, group.sources, strict=True):
        assert spec.shape is None or shape_fits(spec, shape)
        assert not signature.batched or shape[0] == group.total_rows
        counts = each if signature.batched else [1]
        row_shape = shape[1:] if signature.batched else shape
        _check_source(spec, source, shape, counts, prod(row_shape))
        # Of what is larger numpy makes no array, also when it has no elements.
        assert prod(dim for dim in shape if dim) * 16 < 1 << 63
    assert group.replies is None or len(group.replies) == group.count
    for offset, nbytes in group.replies or ():
        assert group.region is not None
        assert offset % ALIGNMENT == 0
        assert 0 <= offset <= offset + nbytes <= len(group.region.memory)
    assert group.deadlines is None or len(group.deadlines) == group.count
    if sum(map(prod, group.shapes)) > _ELEMENTS_MAX or group.total_rows > _ELEMENTS_MAX:
        return Checked(group, None)
    inputs = [_elements(group, i, each) for i in range(len(signature.inputs))]
    return Checked(group, [list(of_request) for of_request in zip(*inputs, strict=True)])


def _check_source(
    spec: TensorSpec,
    source: Buffer | RegionRows,
    shape: tuple[int, ...],
    counts: list[int],
    width: int,
) -> None:
    size = dtypes.itemsize(spec.dtype)
    if isinstance(source, RegionRows):
        assert spec.dtype not in ("bool", "string")
        assert len(source.offsets) == len(counts)
        for offset, rows in zip(source.offsets, counts, strict=True):
            assert 0 <= offset <= offset + rows * width * size <= len(source.region.memory)
    elif spec.dtype == "string":
        offsets = struct.unpack_from(f"<{prod(shape) + 1}I", source)
        assert offsets[0] == 4 * len(offsets)
        assert offsets[-1] == len(source)
        assert list(offsets) == sorted(offsets)
    else:
        assert len(source) == prod(shape) * size
        assert spec.dtype != "bool" or set(bytes(source)) <= {0, 1}


def _elements(group: RequestGroup, i: int, each: list[int]) -> list[Elements]:
    """What each request has for input ``i``."""
    batched = group.lane.signature.batched
    spec, shape, source = group.lane.signature.inputs[i], group.shapes[i], group.sources[i]
    size = dtypes.itemsize(spec.dtype)
    found = []
    row = 0
    for request, rows in enumerate(each):
        mine = (rows, *shape[1:]) if batched else shape
        if isinstance(source, RegionRows):
            start = source.offsets[request]
            items = _cut(source.region.memory, start, prod(mine), size)
        elif spec.dtype == "string":
            offsets = struct.unpack_from(f"<{prod(shape) + 1}I", source)
            first = row * prod(shape[1:]) if batched else 0
            ends = pairwise(offsets[first : first + prod(mine) + 1])
            items = [bytes(source[start:end]) for start, end in ends]
        else:
            items = _cut(source, row * prod(shape[1:]) * size, prod(mine), size)
        array = np.empty(prod(mine), object)
        array[:] = items
        found.append(array.reshape(mine))
        row += rows
    return found


def _cut(memory: Any, start: int, count: int, size: int) -> list[bytes]:
    return [bytes(memory[start + k * size : start + (k + 1) * size]) for k in range(count)]


def check_batches(checked: list[Checked]) -> None:
    """Batches of what shares a lane: each is written where it may be, and has the right rows."""
    lanes = {id(c.group.lane): c.group.lane for c in checked}
    rows_of = {id(c.group): c.rows for c in checked}
    for lane in lanes.values():
        groups = [c.group for c in checked if c.group.lane is lane]
        if any(rows_of[id(group)] is None for group in groups):
            continue
        for group in groups:
            lane.append(group)
        for _ in range(_BATCHES_MAX):
            if not lane.parts:
                break
            parts = by_client(lane.take(lane.max_rows))
            _check_batch(lane, parts, rows_of)


def _check_batch(lane: Lane, parts: list[Part], rows_of: dict[int, Any]) -> None:
    rows = sum(part.rows for part in parts)
    layout = plan_layout(lane, parts, rows)
    if layout.nbytes > _BLOCK.nbytes:
        # The broker makes smaller ones.
        return
    batch = Batch(1, lane, parts, rows, layout, _BLOCK, 0, 0.0)
    memory = bytearray([_UNTOUCHED]) * ARENA_NBYTES
    gathered = gather(memoryview(memory), batch)
    inputs = [place[3:] for place in gathered.inputs]
    regions = {p.group.region.id: p.group.region.memory for p in parts if p.group.region}
    for which, source, target, nbytes in gathered.copies:
        assert 0 <= source <= source + nbytes <= len(regions[which])
        assert any(
            where == ARENA and start <= target and target + nbytes <= start + size
            for where, start, size in inputs
        )
        memory[target : target + nbytes] = regions[which][source : source + nbytes]
    end = _BLOCK.offset
    rest = bytearray(memory)
    for i, (_, dtype, shape, which, start, nbytes) in enumerate(gathered.inputs):
        assert start % ALIGNMENT == 0
        whole = memory if which == ARENA else regions[which]
        assert 0 <= start <= start + nbytes <= len(whole)
        if which == ARENA:
            assert end <= start
            end = start + nbytes
            rest[start:end] = bytes([_UNTOUCHED]) * nbytes
        got = _as_model_sees(bytes(whole[start : start + nbytes]), dtype, shape)
        want = _wanted(batch, i, shape, rows_of)
        assert got.shape == want.shape
        assert got.tolist() == want.tolist()
    assert end <= _BLOCK.offset + layout.output_offset <= _BLOCK.offset + _BLOCK.nbytes
    assert rest == bytes([_UNTOUCHED]) * ARENA_NBYTES


def _as_model_sees(data: bytes, dtype: str, shape: tuple[int, ...]) -> Elements:
    array = np.empty(prod(shape), object)
    if dtype == "string":
        offsets = struct.unpack_from(f"<{prod(shape) + 1}I", data)
        array[:] = [data[offsets[k] : offsets[k + 1]] for k in range(prod(shape))]
        assert offsets[-1] == len(data)
    else:
        size = dtypes.itemsize(dtype)
        array[:] = _cut(data, 0, prod(shape), size)
        assert len(data) == prod(shape) * size
    return array.reshape(shape)


def _wanted(batch: Batch, i: int, shape: tuple[int, ...], rows_of: dict[int, Any]) -> Elements:
    if not batch.lane.signature.batched:
        whole: Elements = rows_of[id(batch.parts[0].group)][0][i]
        return whole
    rows: list[Elements] = []
    for part in batch.parts:
        all_rows: list[Elements] = []
        for request in rows_of[id(part.group)]:
            given = request[i]
            for row in given:
                padded = np.empty(shape[1:], object)
                padded.fill(given.flat[0] if given.size else None)
                padded[tuple(slice(dim) for dim in given.shape[1:])] = row
                all_rows.append(padded)
        rows += all_rows[part.row_start : part.row_start + part.rows]
    rows += [rows[-1]] * (shape[0] - len(rows))
    wanted = np.empty(shape, object)
    for k, row in enumerate(rows):
        # Of no dimensions: numpy would put the array itself there.
        wanted[k] = row if row.shape else row[()]
    return wanted
