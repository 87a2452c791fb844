"""When a batch was where: for those who want to know where the time of its requests went."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spent:
    """Where the time of a request went until its outputs were there, in seconds and in this order.

    ``gather_s``: rows were put side by side, by the broker, and by the worker from regions.
    ``wait_s``: the worker had the batch, but ran another, or was writing the outputs down.
    """

    queue_s: float
    gather_s: float
    wait_s: float
    execute_s: float


@dataclass(slots=True)
class BatchTimes:
    """In the broker's clock. What a worker measures comes with its answer."""

    dispatched_at: float
    handed_over_at: float
    finished_at: float = 0.0
    worker_gather_s: float = 0.0
    execute_s: float = 0.0

    def finished(self, now: float, gather_s: float, execute_s: float) -> None:
        """The worker's answer is here."""
        self.finished_at = now
        self.worker_gather_s = gather_s
        self.execute_s = execute_s

    def spent(self, arrived_at: float) -> Spent:
        """By a request that arrived then; all of it together is ``finished_at - arrived_at``."""
        with_worker_s = self.finished_at - self.handed_over_at
        execute_s = min(self.execute_s, with_worker_s)
        gather_s = min(self.worker_gather_s, with_worker_s - execute_s)
        return Spent(
            self.dispatched_at - arrived_at,
            self.handed_over_at - self.dispatched_at + gather_s,
            with_worker_s - gather_s - execute_s,
            execute_s,
        )
