"""What every server is given to do: requests of one row each, for the models of the benchmarks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from batchyard.benchmarks import compute, memcpy, small
from batchyard.benchmarks.peers.formats import Array

_SMALL_NBYTES = 1024
_LARGE_NBYTES = 512 * 1024


@dataclass(frozen=True, slots=True)
class Workload:
    """A model, its batching, and how many requests are under way."""

    name: str
    title: str
    model: str
    """Its name in ``benchmarks.models``."""
    row_shape: tuple[int, ...]
    batching: Mapping[str, int]
    in_flight: tuple[int, ...]
    """How many requests are under way at once: each is tried, and the best counts. None: a
    request waits for the one before, and what is measured is how long it takes."""
    unit: str
    bare_batch: int
    """Rows that the bare TensorFlow loop runs at once."""
    goal: float | None = None
    """What the ratio to a peer is to be."""
    goal_to_mosec: float | None = None

    @property
    def is_latency(self) -> bool:
        """Whether less is better."""
        return not self.in_flight

    @property
    def row_nbytes(self) -> int:
        """Of one request's tensor."""
        return math.prod(self.row_shape) * np.dtype(np.float32).itemsize

    @property
    def is_small(self) -> bool:
        """Whether it matters how many rows travel together, and who waits for them."""
        return self.row_nbytes <= _SMALL_NBYTES

    @property
    def is_large(self) -> bool:
        """Whether it matters how often a row is copied."""
        return self.row_nbytes >= _LARGE_NBYTES

    def rows(self) -> list[Array]:
        """A row for each request under way, as batches of one; the same in every run."""
        count = max(self.in_flight, default=1)
        values = np.random.default_rng(0).random((count, *self.row_shape), np.float32)
        return [values[i : i + 1] for i in range(count)]


WORKLOADS = (
    Workload(
        name="small",
        title="one-row requests",
        model=small.MODEL,
        row_shape=(),
        batching=small.BATCHING,
        in_flight=(64, 256),
        unit="requests/s",
        bare_batch=1,
        goal=5.0,
        goal_to_mosec=2.0,
    ),
    Workload(
        name="latency",
        title="unloaded p50",
        model=small.MODEL,
        row_shape=(),
        batching={**small.BATCHING, "batch_timeout_micros": 0},
        in_flight=(),
        unit="µs",
        bare_batch=1,
        # Five times ahead. mosec is within a few times the bare call, which leaves no such room.
        goal=0.2,
    ),
    Workload(
        name="tensors",
        title=f"images of {memcpy.IMAGE_NBYTES / 1000:.0f} KB",
        model="mean",
        row_shape=memcpy.IMAGE_SHAPE,
        batching={"max_batch_size": memcpy.BATCH, "batch_timeout_micros": 1000},
        in_flight=(memcpy.BATCH,),
        unit="images/s",
        bare_batch=memcpy.BATCH,
        goal=5.0,
        goal_to_mosec=5.0,
    ),
    Workload(
        name="compute",
        title="MobileNetV2",
        model=compute.MODEL,
        row_shape=compute.IMAGE_SHAPE,
        batching=compute.BATCHING,
        in_flight=(compute.IN_FLIGHT,),
        unit="images/s",
        bare_batch=compute.BATCH,
        # No goal: whoever keeps TensorFlow busy is as fast as it, and nobody is faster.
    ),
)
