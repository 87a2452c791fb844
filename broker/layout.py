"""Where in its block each tensor of a batch lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from batchyard.broker.lane import Lane
from batchyard.broker.policy import NEVER, bucketed_length, padded_rows
from batchyard.broker.queue import Part, Region, RegionRows
from batchyard.wire import dtypes
from batchyard.wire.arena import ALIGNMENT, align
from batchyard.wire.tensors import element_count, string_nbytes


@dataclass(frozen=True, slots=True)
class TensorSlot:
    """A tensor of a batch: its bytes begin ``offset`` after the block's first.

    One with a ``region`` is read in place: the offset counts from that region's first byte, and
    the block has no room for it.
    """

    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    region: Region | None = None


@dataclass(frozen=True, slots=True)
class BatchLayout:
    """The inputs of a batch, and where its outputs may go."""

    rows: int
    padded_rows: int
    inputs: tuple[TensorSlot, ...]
    output_offset: int
    output_nbytes: int

    @property
    def nbytes(self) -> int:
        """What the whole block takes."""
        return self.output_offset + self.output_nbytes


def plan_layout(lane: Lane, parts: Sequence[Part], rows: int) -> BatchLayout:
    """The layout of a batch of ``parts``, ``rows`` rows together."""
    layout = lane.layouts.get(rows)
    if layout is None or any(part.group.region is not None for part in parts):
        layout = _plan(lane, parts, rows)
        if lane.has_fixed_rows and not any(slot.region for slot in layout.inputs):
            lane.layouts[rows] = layout
    return layout


def _plan(lane: Lane, parts: Sequence[Part], rows: int) -> BatchLayout:
    parameters = lane.parameters
    batched = lane.signature.batched
    padded = padded_rows(rows, parameters.allowed_batch_sizes) if batched else rows
    slots = []
    offset = 0
    for i, spec in enumerate(lane.signature.inputs):
        shape = (padded, *_row_shape(lane, i, parts)) if batched else parts[0].group.shapes[i]
        if spec.dtype == dtypes.STRING:
            nbytes = _strings_nbytes(i, parts, shape)
        else:
            nbytes = element_count(shape) * dtypes.itemsize(spec.dtype)
            found = _in_place(lane, i, parts, shape, nbytes)
            if found is not None:
                slots.append(found)
                continue
        slots.append(TensorSlot(spec.dtype, shape, offset, nbytes))
        offset += align(nbytes)
    # Each output is aligned: leave room for that.
    outputs = len(lane.signature.outputs)
    output_nbytes = align(padded * lane.output_row_nbytes) + align(1) * outputs
    return BatchLayout(rows, padded, tuple(slots), offset, output_nbytes)


def _in_place(
    lane: Lane, i: int, parts: Sequence[Part], shape: tuple[int, ...], nbytes: int
) -> TensorSlot | None:
    """The slot of an input that lies as it is needed, in one piece, in one client's region."""
    source = parts[0].group.sources[i]
    if not isinstance(source, RegionRows) or not lane.model.reads_in_place or not nbytes:
        return None
    if not source.region.is_ours or any(p.group.earliest_deadline < NEVER for p in parts):
        # Somebody else's, or a caller's who goes on when the deadline is over.
        return None
    dtype = lane.signature.inputs[i].dtype
    if dtype not in dtypes.READ_IN_PLACE:
        return None
    region = source.region
    if not lane.signature.batched:
        start = source.offsets[0]
    else:
        row_nbytes = nbytes // shape[0]
        runs = joined_runs(i, parts, row_nbytes, shape[1:])
        if runs is None or len(runs) != 1 or runs[0][2] != nbytes:
            return None
        start = runs[0][1]
        region = runs[0][0]
    if start % ALIGNMENT:
        return None
    return TensorSlot(dtype, shape, start, nbytes, region)


def joined_runs(
    i: int, parts: Sequence[Part], row_nbytes: int, row_shape: tuple[int, ...]
) -> list[tuple[Region, int, int]] | None:
    """Where the rows of input ``i`` lie in regions: ``(region, offset, nbytes)``.

    Neighbours are joined. None when any of them came in a frame, or has another shape.
    """
    runs: list[tuple[Region, int, int]] = []
    for part in parts:
        group = part.group
        source = group.sources[i]
        if not isinstance(source, RegionRows) or group.shapes[i][1:] != row_shape:
            return None
        region = source.region
        for request in range(part.first, part.first + part.count):
            first = group.row_start(request)
            start = max(first, part.row_start)
            rows = min(group.row_start(request + 1), part.row_start + part.rows) - start
            offset = source.offsets[request] + (start - first) * row_nbytes
            nbytes = rows * row_nbytes
            if runs and runs[-1][0] is region and runs[-1][1] + runs[-1][2] == offset:
                runs[-1] = (region, runs[-1][1], runs[-1][2] + nbytes)
            else:
                runs.append((region, offset, nbytes))
    return runs


def _row_shape(lane: Lane, i: int, parts: Sequence[Part]) -> tuple[int, ...]:
    """The shape of one row of input ``i``: open dimensions as large as the largest row's."""
    dims = lane.row_shapes[i]
    buckets = lane.parameters.length_buckets
    return tuple(
        dim
        if dim is not None
        else bucketed_length(max(part.group.shapes[i][axis + 1] for part in parts), buckets)
        for axis, dim in enumerate(dims)
    )


def _strings_nbytes(i: int, parts: Sequence[Part], shape: tuple[int, ...]) -> int:
    """An upper bound of what the strings of input ``i`` take.

    Padding, of rows and of dimensions, repeats strings of the batch, so each string that is
    padded in is counted as the largest frame.
    """
    total = given = largest = 0
    for part in parts:
        group = part.group
        width = element_count(group.shapes[i][1:]) if group.lane.signature.batched else None
        frame = group.sources[i]
        assert not isinstance(frame, RegionRows)  # Strings never lie in regions.
        if width is None:
            return len(frame)
        total += string_nbytes(frame, part.row_start * width, (part.row_start + part.rows) * width)
        given += part.rows * width
        largest = max(largest, len(frame))
    padding = element_count(shape) - given
    return total + padding * largest if padding else total
