"""A lane: requests that wait, and may share a batch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from batchyard.broker.durations import Durations
from batchyard.broker.lane_queue import NEAR_S, LaneQueue
from batchyard.broker.measures import Measures
from batchyard.broker.policy import NEVER, BatchingParameters, padded_rows
from batchyard.broker.queue import Part, RequestGroup
from batchyard.wire.dtypes import STRING
from batchyard.wire.signatures import SignatureSpec

if TYPE_CHECKING:
    from batchyard.broker.catalog import ServedModel
    from batchyard.broker.layout import BatchLayout

# A deadline matters that is nearer than so many times what it takes to run all that waits: in any
# order what waits is done long before.
_NEAR_SHARE = 2
# A queue that was not short for so long is a standing one.
_STANDING_S = 0.1


@dataclass(slots=True, eq=False)
class Lane(LaneQueue):
    """Requests that may share a batch: same model, version, signature, priority and row shapes.

    ``row_shapes`` has one shape for each input, None where ``pad_variable_length_inputs`` lets
    the dimension differ between requests. In a lane that is not batched a request counts as one
    row, whatever its shapes. ``durations`` is what is known of its batches, by kind of device;
    other lanes may share it.
    """

    model: ServedModel
    signature: SignatureSpec
    priority: int
    row_shapes: tuple[tuple[int | None, ...], ...]
    batch_timeout_s: float
    # Bytes that the outputs of one row took so far, at most.
    output_row_nbytes: int
    durations: dict[str, Durations] = field(default_factory=dict)
    # Rows that may wait; beyond, requests are refused.
    max_queued_rows: int = field(init=False)
    # Layouts of batches of so many rows, where rows are all that they depend on.
    layouts: dict[int, BatchLayout] = field(default_factory=dict)
    # Whether all rows have the same bytes.
    has_fixed_rows: bool = field(init=False)
    # Its signature's.
    measures: Measures = field(init=False)
    # The model's when the lane was made: what waits was cut by them.
    parameters: BatchingParameters = field(init=False)
    # Sizes that batches run at, increasing: those allowed, or powers of two for all.
    sizes: list[int] = field(init=False)
    # When the queue was last shorter than ``queue_delay_target_micros``.
    _short_at: float = -NEVER

    def __post_init__(self) -> None:
        self.parameters = parameters = self.model.parameters
        self.measures = self.model.measures.setdefault(self.signature.name, Measures())
        batch = parameters.max_batch_size if self.signature.batched else 1
        self.max_queued_rows = parameters.max_enqueued_batches * batch
        self.has_fixed_rows = self.signature.batched and not (
            any(spec.dtype == STRING for spec in self.signature.inputs)
            or any(None in shape for shape in self.row_shapes)
        )
        allowed = parameters.allowed_batch_sizes or tuple(
            1 << i for i in range(self.max_rows.bit_length())
        )
        self.sizes = sorted({*(size for size in allowed if size < self.max_rows), self.max_rows})

    def fitting(self, group: RequestGroup, running_rows: int = 0) -> int:
        """How many of a group's requests there is room for; so many rows of it need none."""
        return group.fitting(self.max_queued_rows - self.queued_rows + running_rows)

    @property
    def shed_at(self) -> float:
        """When requests of its model were last refused or dropped because they would be late."""
        return self.model.shed_at

    # How long it takes

    def expected(self, rows: int, kind: str) -> float | None:
        """How long a batch of so many rows will run on that kind of device, if that is known."""
        durations = self.durations.get(kind)
        if durations is None or not durations.is_known:
            return None
        return durations.expected(self.padded(rows))

    def is_steady(self, rows: int, kind: str) -> bool:
        """Whether batches of so many rows always run for much the same time there."""
        durations = self.durations.get(kind)
        return durations is not None and durations.is_steady(self.padded(rows))

    def least(self, rows: int, kind: str, now: float) -> float | None:
        """How long it will surely take, from handing it over to its answer."""
        durations = self.durations.get(kind)
        if durations is None or not durations.is_known:
            return None
        return durations.least(self.padded(rows), now, self.model.in_execution > 0)

    def longest(self, rows: int) -> float | None:
        """The same, on the slowest kind of device; with handing it over."""
        longest: float | None = None
        for durations in self.durations.values():
            if durations.is_known:
                seconds = durations.expected(self.padded(rows)) + durations.handing_s
                longest = seconds if longest is None else max(longest, seconds)
        return longest

    @property
    def handing_s(self) -> float:
        """How long a batch takes beside its execution, on the slowest kind of device."""
        return max((durations.handing_s for durations in self.durations.values()), default=0.0)

    def padded(self, rows: int) -> int:
        """The size at which a batch of so many rows runs."""
        return padded_rows(rows, self.parameters.allowed_batch_sizes)

    def near_s(self) -> float:
        """How far away a deadline is that matters."""
        takes = self.longest(self.max_rows)
        if takes is None:
            return NEAR_S
        workers = len(self.model.workers) or 1
        threads = self.parameters.num_batch_threads
        if threads is not None and threads < workers:
            workers = threads
        rounds = self.queued_rows / (self.max_rows * workers) + 1
        return max(NEAR_S, _NEAR_SHARE * takes * rounds)

    # Coming and going

    def append(self, group: RequestGroup) -> None:
        """A group arrived."""
        if not self._untimed:
            self._short_at = group.arrived_at
        for part in group.parts(self.max_rows):
            self._enter(part)

    def shed(self, now: float) -> list[Part]:
        """Takes out and returns what waits for too long in a queue that stands, if asked to.

        Controlled delay for servers, as in Maurer's "Fail at Scale" (ACM Queue, 2015): what has no
        deadline may wait longer than the target only while the queue was short lately.
        """
        target_s = self.parameters.queue_delay_target_micros / 1e6
        if not target_s or not self._untimed:
            self._short_at = now
            return []
        if now - self._untimed[0].group.arrived_at < target_s:
            self._short_at = now
        if now - self._short_at < _STANDING_S:
            return []
        removed = []
        while self._untimed and now - self._untimed[0].group.arrived_at >= target_s:
            part = self._untimed.popleft()
            self._count(part, -part.rows, False)
            removed.append(part)
        return removed

    def learn_output_nbytes(self, nbytes: int, rows: int) -> None:
        """Notes what the outputs of ``rows`` rows took; one large answer is slowly forgotten."""
        known = self.output_row_nbytes
        self.output_row_nbytes = max(-(-nbytes // rows), known * 7 // 8)
        if self.output_row_nbytes != known:
            self.layouts.clear()
