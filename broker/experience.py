"""What a batch that ran says: of what it cost, and of the batches to come."""

from __future__ import annotations

from batchyard.broker.durations import Durations
from batchyard.broker.events import Batch


def ran(batch: Batch, kind: str, execution_s: float, now: float, learns: bool) -> None:
    """A batch ran for so long on that kind of device."""
    batch.lane.measures.execution.add(execution_s)
    _account(batch, execution_s, now)
    if learns:
        _learn(batch, kind, execution_s, now)


def _learn(batch: Batch, kind: str, execution_s: float, now: float) -> None:
    """How long batches of its lane take on that kind of device."""
    durations = batch.lane.durations.setdefault(kind, Durations())
    durations.learn(batch.layout.padded_rows, execution_s, now)
    handing_s = max(now - batch.dispatched_at - execution_s, 0.0)
    durations.learn_handing(handing_s, now, batch.was_idle)


def _account(batch: Batch, execution_s: float, now: float) -> None:
    """What it cost its model, for whom in vain, and how well that was predicted."""
    model = batch.lane.model
    model.busy_s += execution_s
    if batch.expected_s is not None:
        model.errors.add(batch.expected_s, execution_s)
    late = [part for part in batch.parts if part.group.earliest_deadline < now]
    if late:
        rows = sum(gone.rows for p in late for gone in p.divide(p.late_requests(now))[1])
        model.late_s += execution_s * rows / batch.rows
