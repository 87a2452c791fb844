"""Builds what the broker's core works on: signatures, reports of workers, catalogs, messages."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any

import numpy as np

from batchyard.broker.catalog import Catalog, ServedModel
from batchyard.broker.lane import Lane
from batchyard.broker.policy import NEVER, BatchingParameters
from batchyard.broker.queue import RequestGroup, Source
from batchyard.wire.protocol import InputHeader, Predict, RegionPlaces, Target
from batchyard.wire.signatures import Shape, SignatureSpec, TensorSpec, can_be_batched
from batchyard.wire.work import ModelReport, Ready, SignatureReport

# A row of the default signature is 16 float32: as many bytes as memory is aligned to, so that
# sizes of blocks can be counted in rows.
ROW_SHAPE = (16,)
ROW_NBYTES = 64
TensorArgs = tuple[str, str, Shape | None]

_message_ids = count(1)


def make_parameters(**changes: Any) -> BatchingParameters:
    """Batching parameters: batches of up to 4 rows that wait for nothing."""
    defaults: dict[str, Any] = {
        "max_batch_size": 4,
        "batch_timeout_micros": 0,
        "max_enqueued_batches": 100,
        "num_batch_threads": None,
        "allowed_batch_sizes": (),
        "pad_variable_length_inputs": False,
        "length_buckets": (),
        "enable_large_batch_splitting": True,
        "enable_batching": True,
    }
    return BatchingParameters(**{**defaults, **changes})


def make_signature(
    inputs: Sequence[TensorArgs] = (("x", "float32", (None, *ROW_SHAPE)),),
    outputs: Sequence[TensorArgs] = (("y", "float32", (None, *ROW_SHAPE)),),
    *,
    name: str = "serving_default",
    is_open: bool = False,
) -> SignatureSpec:
    """A signature that is batched when TensorFlow Serving could batch it, or when it is open."""
    input_specs = tuple(TensorSpec(*spec) for spec in inputs)
    output_specs = tuple(TensorSpec(*spec) for spec in outputs)
    batched = is_open or can_be_batched(input_specs, output_specs)
    return SignatureSpec(name, input_specs, output_specs, batched, open=is_open)


OPEN = make_signature((), (), is_open=True)


def make_report(
    *signatures: SignatureSpec,
    name: str = "m",
    version: int = 1,
    stateful: bool = False,
    output_row_nbytes: int | None = 0,
) -> ModelReport:
    """What a worker says of a model that it loaded; with the default signature if none is given."""
    reports = (SignatureReport(s, output_row_nbytes) for s in signatures or (make_signature(),))
    return ModelReport(name, version, stateful, True, tuple(reports), 0.0, 0.0)


def make_ready(*reports: ModelReport) -> Ready:
    """What a worker says when it can take batches."""
    return Ready("cpu", reports)


def make_model(
    name: str = "m",
    version: int = 1,
    labels: tuple[str, ...] = ("stable",),
    is_current: bool = True,
    retry: bool | None = None,
    timeout_s: float = NEVER,
    error: str = "",
    **parameters: Any,
) -> ServedModel:
    """A version of a model that no worker serves yet. ``timeout_s`` is of its batches."""
    made = make_parameters(**parameters)
    return ServedModel(name, version, labels, made, is_current, retry, timeout_s, error)


def make_catalog(
    *signatures: SignatureSpec,
    arena_nbytes: int = 1 << 20,
    workers: Sequence[int] = (0,),
    **parameters: Any,
) -> Catalog:
    """A catalog whose one model, ``m``, is served by ``workers``."""
    catalog = Catalog(arena_nbytes)
    catalog.add(make_model(**parameters))
    for worker in workers:
        catalog.worker_ready(worker, make_report(*signatures))
    return catalog


def make_target(
    *inputs: tuple[str, str, Shape],
    model: str = "m",
    version: int | None = None,
    label: str | None = None,
    signature: str = "serving_default",
    priority: int = 0,
) -> bytes:
    """An encoded target; without inputs, for rows of the default signature."""
    headers = inputs or (("x", "float32", (None, *ROW_SHAPE)),)
    return Target(
        model, version, label, signature, priority, tuple(InputHeader(*i) for i in headers)
    ).encode()


# For a signature without inputs.
NO_INPUTS = Target("m", None, None, "serving_default", 0, ()).encode()


def make_predict(
    target: bytes,
    rows: int | list[int] | None,
    timeouts_us: int | list[int | None] | None = None,
    message_id: int | None = None,
    places: RegionPlaces | None = None,
) -> Predict:
    """A PREDICT message, with a number of its own if none is given."""
    number = next(_message_ids) if message_id is None else message_id
    return Predict(number, target, rows, timeouts_us, places)


def make_rows(rows: int, value: float = 0.0) -> bytes:
    """The frame of ``rows`` rows of the default signature, all elements ``value``."""
    return np.full((rows, *ROW_SHAPE), value, np.float32).tobytes()


def make_lane(max_rows: int = 4, signature: SignatureSpec | None = None, **parameters: Any) -> Lane:
    """A lane, of the default signature if none is given, that no catalog knows."""
    return Lane(
        model=make_model(max_batch_size=max_rows, **parameters),
        signature=make_signature() if signature is None else signature,
        priority=0,
        row_shapes=(ROW_SHAPE,),
        max_rows=max_rows,
        batch_timeout_s=0.0,
        output_row_nbytes=0,
    )


def make_group(
    lane: Lane,
    *rows: int,
    deadlines: list[float] | None = None,
    deadline: float = NEVER,
    arrived_at: float = 0.0,
) -> RequestGroup:
    """Requests of so many rows each, whose tensors nobody reads. Not yet in the lane."""
    total = sum(rows)
    sources: list[Source] = [b""]
    return RequestGroup(
        client=b"c",
        message_id=next(_message_ids),
        lane=lane,
        count=len(rows),
        total_rows=total,
        rows=None if total == len(rows) else list(rows),
        sources=sources,
        shapes=[(total, *ROW_SHAPE)],
        nbytes=total * ROW_NBYTES,
        arrived_at=arrived_at,
        earliest_deadline=deadline if deadlines is None else min(deadlines),
        deadlines=deadlines,
    )
