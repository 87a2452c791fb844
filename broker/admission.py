"""A PREDICT message becomes a group of requests, or an error that says what is wrong with it."""

from __future__ import annotations

from batchyard.broker.catalog import Catalog, Route
from batchyard.broker.policy import NEVER
from batchyard.broker.queue import Region, RegionRows, RequestGroup, Source
from batchyard.wire.arena import ALIGNMENT
from batchyard.wire.dtypes import NOT_IN_REGIONS, itemsize
from batchyard.wire.errors import InvalidArgument
from batchyard.wire.protocol import ROWS_MAX, Predict
from batchyard.wire.signatures import TensorSpec, format_shape
from batchyard.wire.tensors import Buffer, check_frame, element_count


def admit(
    catalog: Catalog,
    client: bytes,
    region: Region | None,
    predict: Predict,
    frames: list[Buffer],
    now: float,
) -> RequestGroup:
    """The group of a message that passed every check. ``region`` is the client's, if it has one.

    Raises InvalidArgument, NotFound, Unavailable or ResourceExhausted. Nothing is allocated
    but what the message itself takes.
    """
    route = catalog.route(predict.target)
    rows = predict.rows
    each: list[int] | None
    if type(rows) is int and predict.region is None and _fits(route, rows, frames):
        # As most come: requests of one row each, of numbers, in the signature's order.
        total, each = rows, None
        sources = list[Source](frames)
        shapes = [(rows, *shape) for shape in route.row_shapes]
        nbytes = sum(map(len, frames))
    elif type(rows) is int and region is not None and _lies_in(region, route, predict, frames):
        # Or such requests in the client's region, as large tensors come.
        total, each = rows, None
        places = predict.region.inputs if predict.region is not None else []
        sources = [RegionRows(region, offsets) for offsets in places if offsets is not None]
        shapes = [(rows, *shape) for shape in route.row_shapes]
        # They bind none of the broker's memory, but work: to copy them.
        nbytes = sum(n or 0 for n in route.row_nbytes or ()) * rows
    else:
        total, each, shapes = _count_rows(route, predict)
        sources, nbytes = _check_inputs(route, region, predict, frames, each, shapes)
    group = RequestGroup(
        client=client,
        message_id=predict.message_id,
        lane=route.lane,
        count=predict.count,
        total_rows=total,
        rows=None if each is not None and total == predict.count else each,
        sources=sources,
        shapes=shapes,
        nbytes=nbytes,
        arrived_at=now,
    )
    if predict.region is not None:
        group.region = region
        group.replies = predict.region.replies
    if predict.tags:
        group.tags = predict.tags
    _set_deadlines(group, predict.timeouts_us, now)
    return group


def _fits(route: Route, rows: int, frames: list[Buffer]) -> bool:
    """Whether the frames are so many rows, which needs no more than their lengths."""
    return (
        route.row_nbytes is not None
        and route.in_order
        and len(frames) == len(route.row_nbytes)
        and all(
            row_nbytes is not None and len(frame) == rows * row_nbytes
            for frame, row_nbytes in zip(frames, route.row_nbytes, strict=True)
        )
    )


def _lies_in(region: Region, route: Route, predict: Predict, frames: list[Buffer]) -> bool:
    """Whether the message is all about rows in the region, and they do lie there."""
    places = predict.region
    if (
        places is None
        or places.replies is not None
        or frames
        or route.row_nbytes is None
        or not route.in_order
        or len(places.inputs) != len(route.row_nbytes)
    ):
        return False
    size = len(region.memory)
    for offsets, row_nbytes in zip(places.inputs, route.row_nbytes, strict=True):
        if offsets is None or row_nbytes is None or max(offsets) + row_nbytes > size:
            return False
    return True


def _check_inputs(
    route: Route,
    region: Region | None,
    predict: Predict,
    frames: list[Buffer],
    each: list[int] | None,
    shapes: list[tuple[int, ...]],
) -> tuple[list[Source], int]:
    """Where each of the signature's inputs lies, and the bytes of those that lie in frames."""
    signature = route.lane.signature
    places = _places(route, region, predict, frames)
    where = f"{_where(route)}: input"
    row_counts = each if each is not None else [1] * predict.count
    sources: list[Source] = []
    nbytes = 0
    for spec, place, shape in zip(signature.inputs, route.order, shapes, strict=True):
        source = places[place]
        if isinstance(source, RegionRows):
            _check_region_rows(source, spec, shape, row_counts, signature.batched, where)
            nbytes += element_count(shape) * itemsize(spec.dtype)
        else:
            check_frame(source, spec.dtype, shape, f"{where} {spec.name!r}")
            nbytes += len(source)
        sources.append(source)
    return sources, nbytes


def _places(
    route: Route, region: Region | None, predict: Predict, frames: list[Buffer]
) -> list[Source]:
    """Where each of the message's inputs lies, in the order of the message."""
    inputs: list[list[int] | None] = [None] * len(route.order)
    if predict.region is not None:
        if region is None:
            raise InvalidArgument(
                f"{_where(route)}: the message speaks of a region, but the client has none"
            )
        inputs = predict.region.inputs
        for offset, nbytes in predict.region.replies or ():
            if offset + nbytes > len(region.memory) or offset % ALIGNMENT:
                raise InvalidArgument(
                    f"{_where(route)}: a reply of {nbytes} bytes at {offset} does not lie in the "
                    f"region of {len(region.memory)} bytes, or is not {ALIGNMENT}-byte aligned"
                )
    wanted = inputs.count(None)
    if len(inputs) != len(route.order) or len(frames) != wanted:
        raise InvalidArgument(
            f"{_where(route)}: the message has {len(frames)} tensor frames and "
            f"{len(inputs) - wanted} inputs in the region, needs {len(route.order)} together, one "
            "for each input"
        )
    waiting = iter(frames)
    return [
        next(waiting) if offsets is None or region is None else RegionRows(region, offsets)
        for offsets in inputs
    ]


def _check_region_rows(
    source: RegionRows,
    spec: TensorSpec,
    shape: tuple[int, ...],
    row_counts: list[int],
    batched: bool,
    where: str,
) -> None:
    """Everything that a message claims of its region, before anything reads it."""
    if spec.dtype in NOT_IN_REGIONS:
        raise InvalidArgument(
            f"{where} {spec.name!r}: tensors of {spec.dtype} cannot lie in a region: what was "
            "checked could be changed before it is read"
        )
    nbytes = element_count(shape[1:] if batched else shape) * itemsize(spec.dtype)
    size = len(source.region.memory)
    for offset, rows in zip(source.offsets, row_counts, strict=True):
        if offset + rows * nbytes > size:
            raise InvalidArgument(
                f"{where} {spec.name!r}: {rows * nbytes} bytes at {offset} do not lie in the "
                f"region of {size} bytes"
            )


def _count_rows(
    route: Route, predict: Predict
) -> tuple[int, list[int] | None, list[tuple[int, ...]]]:
    """All rows of the message, those of each request unless it is one, and each input's shape."""
    rows = predict.rows
    each = rows if type(rows) is list else None
    if not route.lane.signature.batched:
        if predict.count != 1:
            raise InvalidArgument(
                f"{_where(route)}: requests for it are never batched, so each must be a message "
                f"of its own, not {predict.count} in one"
            )
        return 1, None, [tuple(dim or 0 for dim in shape) for shape in route.shapes]
    if rows is None:
        counts = {shape[0] for shape in route.shapes}
        if None in counts:
            raise InvalidArgument(
                f"{_where(route)}: rows is nil, so the target must give whole shapes"
            )
        if len(counts) > 1:
            given = ", ".join(
                f"{spec.name!r} {format_shape(shape)}"
                for spec, shape in zip(route.lane.signature.inputs, route.shapes, strict=True)
            )
            raise InvalidArgument(
                f"{_where(route)}: inputs must have the same number of rows, got {given}"
            )
        total = counts.pop() or 0
    else:
        total = sum(each) if each is not None else rows  # type: ignore[assignment]
    shapes = []
    for spec, shape in zip(route.lane.signature.inputs, route.shapes, strict=True):
        if shape[0] is not None and shape[0] != total:
            raise InvalidArgument(
                f"{_where(route)}: input {spec.name!r} has {shape[0]} rows, the message {total}"
            )
        shapes.append((total, *(dim or 0 for dim in shape[1:])))
    if rows is None:
        each = [total]
    _check_sizes(route, each, total)
    return total, each, shapes


def _check_sizes(route: Route, each: list[int] | None, total: int) -> None:
    parameters = route.lane.parameters
    if total > ROWS_MAX:
        raise InvalidArgument(
            f"{_where(route)}: the message has {total} rows, may have at most {ROWS_MAX}"
        )
    if not total:
        raise InvalidArgument(f"{_where(route)}: the request has no rows, needs at least one")
    largest = 1 if each is None else max(each)
    if largest > parameters.max_batch_size and not parameters.enable_large_batch_splitting:
        raise InvalidArgument(
            f"{_where(route)}: the request has {largest} rows, max_batch_size is "
            f"{parameters.max_batch_size} and enable_large_batch_splitting is off"
        )
    for spec, shape in zip(route.lane.signature.inputs, route.shapes, strict=True):
        if parameters.pad_variable_length_inputs and not element_count(
            [dim for dim in shape[1:] if dim is not None]
        ):
            raise InvalidArgument(
                f"{_where(route)}: input {spec.name!r} has shape {format_shape(shape)}; rows "
                "without elements cannot be padded"
            )


def _set_deadlines(
    group: RequestGroup, timeouts_us: int | list[int | None] | None, now: float
) -> None:
    if timeouts_us is None:
        return
    if isinstance(timeouts_us, int):
        group.earliest_deadline = now + timeouts_us / 1e6
        return
    group.deadlines = [NEVER if us is None else now + us / 1e6 for us in timeouts_us]
    group.earliest_deadline = min(group.deadlines)


def _where(route: Route) -> str:
    return f"model {route.lane.model.name!r} signature {route.lane.signature.name!r}"
