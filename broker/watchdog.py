"""Which workers hang: a batch has run for longer than its model may take."""

from __future__ import annotations

from collections.abc import Iterable

from batchyard.broker.events import Batch
from batchyard.broker.policy import NEVER
from batchyard.broker.workers import WorkerState


class Watchdog:
    """Knows when to look, not too late and seldom too early."""

    def __init__(self) -> None:
        # When the first batch may be overdue. It may have been answered since.
        self.at = NEVER

    def dispatched(self, batch: Batch, worker: WorkerState, now: float) -> None:
        """A worker, which had fewer batches than it runs at once if it begins now, gets one."""
        if worker.in_flight < worker.concurrent_batches:
            self._started(batch, now)

    def answered(self, worker: WorkerState, now: float) -> None:
        """A worker has one batch less: it takes up the next."""
        for batch in worker.batches.values():
            if batch.running_since == NEVER:
                self._started(batch, now)
                return

    def _started(self, batch: Batch, now: float) -> None:
        batch.running_since = now
        self.at = min(self.at, overdue_at(batch))

    def overdue(
        self, workers: Iterable[WorkerState], now: float
    ) -> list[tuple[WorkerState, Batch]]:
        """Workers that hang, each with the batch that shows it."""
        found = []
        self.at = NEVER
        for worker in workers:
            first = min(worker.batches.values(), key=overdue_at, default=None)
            if first is None:
                continue
            if overdue_at(first) <= now:
                found.append((worker, first))
            else:
                self.at = min(self.at, overdue_at(first))
        return found


def overdue_at(batch: Batch) -> float:
    """When a batch has run too long; NEVER while it waits for its turn."""
    return batch.running_since + batch.lane.model.batch_execution_timeout_s
