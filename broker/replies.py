"""A batch's outputs become messages: one for each client that has requests in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from batchyard.broker.events import Batch, Deliver
from batchyard.broker.queue import Part, SplitRequest
from batchyard.wire import dtypes
from batchyard.wire.errors import BatchyardError, Internal
from batchyard.wire.protocol import (
    OutputHeader,
    Result,
    Segment,
    encode_error,
    encode_result,
    reply_offsets,
)
from batchyard.wire.tags import Timing, tags_of
from batchyard.wire.tensors import Buffer, element_count, join_strings, slice_frame


@dataclass(slots=True)
class Output:
    """One output of a batch, where the worker wrote it. ``data`` is a view of shared memory, empty
    when all of it went into regions."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: memoryview


@dataclass(slots=True)
class Reply:
    """A message to a client, the answer to ``segments``; ``frames`` may be views of the batch's
    outputs. ``error`` is what it says if it has none."""

    client: bytes
    segments: list[Segment]
    header: bytes
    frames: list[Buffer]
    error: BatchyardError | None = None


def refusal(client: bytes, segments: list[Segment], error: BatchyardError) -> Reply:
    """The message that answers requests with an error."""
    return Reply(client, segments, encode_error(segments, error), [], error)


def reply_places(batch: Batch) -> list[tuple[int, int, int, int, int]]:
    """Where in regions outputs may be written, as ``wire.work.Execute`` wants it."""
    places: list[tuple[int, int, int, int, int]] = []
    row = 0
    for part in batch.parts:
        group = part.group
        if group.replies is not None and group.region is not None and part.first not in group.split:
            for request in range(part.first, part.first + part.count):
                start = row + group.row_start(request) - part.row_start
                rows = group.row_start(request + 1) - group.row_start(request)
                places.append((group.region.id, *group.replies[request], start, rows))
        row += part.rows
    return places


def replies(deliver: Deliver, outputs: list[Output]) -> Iterator[Reply]:
    """The messages that answer the parts of a batch: one for each client, and one for each large
    request that is complete.

    To be called before the state hears of another batch: it counts what is left of requests.
    """
    batch = deliver.batch
    by_client: dict[bytes, list[tuple[Part, int]]] = {}
    in_regions: dict[bytes, list[tuple[Part, int]]] = {}
    pieces: list[tuple[Part, int]] = []
    for part, row in deliver.parts:
        group = part.group
        if part.first in group.split:
            pieces.append((part, row))
        elif deliver.replied and group.replies is not None:
            written, others = part.divide(_without_room(deliver, part, outputs))
            _add(in_regions, written, part, row)
            _add(by_client, others, part, row)
        elif group.client in by_client:
            by_client[group.client].append((part, row))
        else:
            by_client[group.client] = [(part, row)]
    if pieces:
        yield from _piece_replies(deliver, pieces, outputs)
    for client, placed in in_regions.items():
        segments = _segments(placed)
        yield Reply(client, segments, _written_header(deliver, segments, placed, outputs), [])
    error = objection(batch, outputs)
    version = batch.lane.model.version
    for client, placed in by_client.items():
        segments = _segments(placed)
        if error is not None:
            yield refusal(client, segments, error)
            continue
        headers, frames = _cut(deliver, placed, outputs)
        queued_rows = batch.lane.model.queued_rows
        timings = () if batch.times is None else timings_of(batch, placed)
        result = Result(segments, version, headers, False, queued_rows, timings)
        yield Reply(client, segments, encode_result(result), frames)


def _segments(placed: list[tuple[Part, int]]) -> list[Segment]:
    return [(part.group.message_id, part.first, part.count) for part, _ in placed]


def timings_of(batch: Batch, placed: list[tuple[Part, int]]) -> list[Timing]:
    """Of the segments with requests that are traced, where their time went."""
    if batch.times is None:
        return []
    timings = []
    for segment, (part, _) in enumerate(placed):
        if any(tag.is_traced for tag in tags_of(part.group.tags, part.first, part.count)):
            spent = batch.times.spent(part.group.arrived_at)
            seconds = (spent.queue_s, spent.gather_s, spent.wait_s, spent.execute_s)
            queue_us, gather_us, wait_us, execute_us = (int(s * 1e6) for s in seconds)
            rows, padded_rows = batch.rows, batch.layout.padded_rows
            timings.append(
                Timing(
                    *(segment, queue_us, gather_us, wait_us, execute_us),
                    *(rows, padded_rows, batch.worker_id),
                )
            )
    return timings


def _add(
    by_client: dict[bytes, list[tuple[Part, int]]], runs: list[Part], part: Part, row: int
) -> None:
    """Notes runs of a part, which begins at ``row`` of the batch, for its client."""
    if runs:
        placed = by_client.setdefault(part.group.client, [])
        placed += [(run, row + run.row_start - part.row_start) for run in runs]


def _without_room(deliver: Deliver, part: Part, outputs: list[Output]) -> set[int]:
    """The requests of a part whose reply space is too small: nothing was written there."""
    group = part.group
    if deliver.batch.alone:
        row_nbytes = [element_count(o.shape) * dtypes.itemsize(o.dtype) for o in outputs]
    else:
        row_nbytes = [element_count(o.shape[1:]) * dtypes.itemsize(o.dtype) for o in outputs]
    without = set()
    for request in range(part.first, part.first + part.count):
        rows = group.row_start(request + 1) - group.row_start(request)
        times = 1 if deliver.batch.alone else rows
        _, room = group.replies[request] if group.replies is not None else (0, 0)
        if reply_offsets([nbytes * times for nbytes in row_nbytes])[-1] > room:
            without.add(request)
    return without


def _written_header(
    deliver: Deliver,
    segments: list[Segment],
    placed: list[tuple[Part, int]],
    outputs: list[Output],
) -> bytes:
    """The header for requests whose outputs the worker wrote into their client's region."""
    headers = [(output.name, output.dtype, output.shape) for output in outputs]
    if not deliver.batch.alone:
        rows = sum(part.rows for part, _ in placed)
        headers = [(name, dtype, (rows, *shape[1:])) for name, dtype, shape in headers]
    version = deliver.batch.lane.model.version
    queued_rows = deliver.batch.lane.model.queued_rows
    timings = timings_of(deliver.batch, placed)
    return encode_result(Result(segments, version, headers, True, queued_rows, timings))


def objection(batch: Batch, outputs: list[Output]) -> BatchyardError | None:
    """Why outputs cannot be given back by rows, if they cannot."""
    lane = batch.lane
    rows = batch.layout.padded_rows
    if not lane.signature.batched or batch.alone:
        return None
    for output in outputs:
        if not output.shape or output.shape[0] != rows:
            return Internal(
                f"model {lane.model.name!r} signature {lane.signature.name!r}: output "
                f"{output.name!r} has shape {output.shape} for a batch of {rows} rows, so it "
                "cannot be given back row by row; set enable_batching = false for this model"
            )
    return None


def _cut(
    deliver: Deliver, placed: list[tuple[Part, int]], outputs: list[Output]
) -> tuple[list[OutputHeader], list[Buffer]]:
    """The rows of one client's parts out of every output."""
    if not deliver.batch.lane.signature.batched or deliver.batch.alone:
        return [(o.name, o.dtype, o.shape) for o in outputs], [o.data for o in outputs]
    runs = _join_runs(placed)
    rows = sum(stop - start for start, stop in runs)
    headers: list[OutputHeader] = []
    frames: list[Buffer] = []
    for output in outputs:
        headers.append((output.name, output.dtype, (rows, *output.shape[1:])))
        frames.append(_rows_of(output, runs))
    return headers, frames


def _join_runs(placed: list[tuple[Part, int]]) -> list[tuple[int, int]]:
    """Runs of batch rows ``(start, stop)``, neighbours joined."""
    runs: list[tuple[int, int]] = []
    for part, row in placed:
        if runs and runs[-1][1] == row:
            runs[-1] = (runs[-1][0], row + part.rows)
        else:
            runs.append((row, row + part.rows))
    return runs


def _rows_of(output: Output, runs: list[tuple[int, int]]) -> Buffer:
    row_shape = output.shape[1:]
    if len(runs) == 1:
        return slice_frame(output.data, output.dtype, row_shape, *runs[0])
    if output.dtype == dtypes.STRING:
        width = element_count(row_shape)
        return join_strings((output.data, a * width, b * width) for a, b in runs)
    return b"".join(slice_frame(output.data, output.dtype, row_shape, a, b) for a, b in runs)


def failures(deliver: Deliver, error: BatchyardError) -> Iterator[Reply]:
    """The messages that answer the parts of a batch whose outputs cannot be sent."""
    for part, _ in deliver.parts:
        group = part.group
        split = group.split.get(part.first)
        if split is not None:
            if split.failed:
                continue
            split.failed = True
        segment = (group.message_id, part.first, part.count)
        yield refusal(group.client, [segment], error)


def _piece_replies(
    deliver: Deliver, pieces: list[tuple[Part, int]], outputs: list[Output]
) -> Iterator[Reply]:
    """Keeps pieces of large requests; answers those of which every piece is there."""
    requests: dict[tuple[int, int], Part] = {}
    for part, row in pieces:
        split = part.group.split[part.first]
        if split.failed:
            continue
        error = objection(deliver.batch, outputs) or _differs(deliver, split, outputs)
        if error is not None:
            split.failed = True
            segment = (part.group.message_id, part.first, 1)
            yield refusal(part.group.client, [segment], error)
            continue
        headers, frames = _cut(deliver, [(part, row)], outputs)
        # The block goes back when this batch is delivered: what is kept is a copy.
        split.keep(part.row_start, part.rows, headers, [bytes(frame) for frame in frames])
        requests[id(part.group), part.first] = part
    for part in requests.values():
        if part.group.split[part.first].is_complete:
            yield _assemble(part, deliver.batch)


def _differs(deliver: Deliver, split: SplitRequest, outputs: list[Output]) -> BatchyardError | None:
    """Why a piece does not fit those that are kept, which fit each other."""
    for headers, _ in islice(split.pieces.values(), 1):
        before = [(name, dtype, shape[1:]) for name, dtype, shape in headers]
        now = [(output.name, output.dtype, output.shape[1:]) for output in outputs]
        if before != now:
            lane = deliver.batch.lane
            return Internal(
                f"model {lane.model.name!r} signature {lane.signature.name!r}: the request was "
                f"split over batches, and the rows of one have {_listed(before)}, of another "
                f"{_listed(now)}; send at most {lane.max_rows} rows"
            )
    return None


def _listed(outputs: list[tuple[str, str, tuple[int, ...]]]) -> str:
    return ", ".join(f"{name!r} {dtype} {shape}" for name, dtype, shape in outputs) or "no output"


def _assemble(part: Part, batch: Batch) -> Reply:
    """The whole answer of a large request."""
    split = part.group.split[part.first]
    pieces = [split.pieces[start] for start in sorted(split.pieces)]
    headers: list[OutputHeader] = []
    frames: list[Buffer] = []
    for i, (name, dtype, shape) in enumerate(pieces[0][0]):
        rows = [piece_headers[i][2][0] for piece_headers, _ in pieces]
        headers.append((name, dtype, (sum(rows), *shape[1:])))
        runs = [piece_frames[i] for _, piece_frames in pieces]
        if dtype == dtypes.STRING:
            width = element_count(shape[1:])
            frames.append(join_strings((f, 0, n * width) for f, n in zip(runs, rows, strict=True)))
        else:
            frames.append(b"".join(runs))
    segment = (part.group.message_id, part.first, 1)
    model = batch.lane.model
    # Those of its last piece.
    timings = timings_of(batch, [(part, 0)])
    result = Result([segment], model.version, headers, False, model.queued_rows, timings)
    return Reply(part.group.client, [segment], encode_result(result), frames)
