"""Which lane's batch goes next, to which worker, and when there may be another.

Applies ``broker.policy`` to the lanes that hold something and to the workers there are.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from batchyard.broker import policy
from batchyard.broker.events import Batch
from batchyard.broker.queue import Lane


@dataclass(slots=True, eq=False)
class WorkerState:
    """A worker as the broker sees it.

    ``set_apart``: it runs suspects only. ``is_retiring``: it gets nothing more. ``orphans`` counts
    the batches that it has of a broker before this one.
    """

    id: int
    device: str
    concurrent_batches: int
    slot: int = -1
    batches: dict[int, Batch] = field(default_factory=dict)
    batches_done: int = 0
    orphans: int = 0
    set_apart: bool = False
    is_retiring: bool = False

    @property
    def in_flight(self) -> int:
        """Batches handed over and not answered."""
        return len(self.batches) + self.orphans


class Scheduler:
    """Looks at ``waiting`` lanes and ``workers``, which belong to the state machine."""

    def __init__(
        self,
        waiting: Mapping[Lane, None],
        workers: Mapping[int, WorkerState],
        coming_back: Collection[int],
    ) -> None:
        """``coming_back`` are the slots that have no worker, and will have one."""
        self._waiting = waiting
        self._workers = workers
        self._coming_back = coming_back
        # When the most urgent batch found no room in the arena, if it did when it was last tried.
        # For what was ripe then only a block that comes back, or a change of what waits, can
        # help, and neither needs a clock.
        self._short_of_memory_at: float | None = None
        # When the next lane that a worker has room for is ripe, if that is known.
        self._next: float | None = None

    def something_changed(self) -> None:
        """Lanes or workers are not what they were."""
        self._next = None

    def memory_came_back(self) -> None:
        """A block is free again: what found no room may be tried again."""
        self._short_of_memory_at = None
        self._next = None

    @property
    def is_short_of_memory(self) -> bool:
        """Whether a batch found no room since memory last came back."""
        return self._short_of_memory_at is not None

    def memory_is_short(self, now: float) -> None:
        """The batch that was chosen found no room."""
        self._short_of_memory_at = now
        self._next = None

    def next_ripe(self) -> float:
        """When the next lane that a worker has room for is ripe; may be in the past.

        Lanes that are ripe and wait for a worker or for memory have no time of their own.
        """
        if self._next is None:
            short_at = self._short_of_memory_at
            earliest = policy.NEVER
            for lane in self._waiting:
                ripe_at = policy.ripe_at(lane)
                if short_at is not None and ripe_at <= short_at:
                    continue
                if ripe_at < earliest and self.worker_for(lane) is not None:
                    earliest = ripe_at
            self._next = earliest
        return self._next

    def choose(self, now: float) -> tuple[Lane, WorkerState] | None:
        """The most urgent lane that can go out now, and the worker that gets its batch."""
        best: tuple[Lane, WorkerState] | None = None
        next_at = policy.NEVER
        for lane in self._waiting:
            ripe_at = policy.ripe_at(lane)
            if ripe_at > now:
                if ripe_at < next_at and self.worker_for(lane) is not None:
                    next_at = ripe_at
                continue
            if best is not None and policy.urgency(lane) >= policy.urgency(best[0]):
                continue
            worker = self.worker_for(lane)
            if worker is not None:
                best = lane, worker
        # With nothing to hand over, nothing changes before that.
        self._next = next_at if best is None else None
        return best

    def worker_for(self, lane: Lane) -> WorkerState | None:
        """The worker that would get the lane's next batch; None when it has to wait."""
        return policy.choose_worker(lane, [w for w in self._serving(lane) if not w.set_apart])

    def worker_for_suspect(self, lane: Lane, may_risk: bool) -> WorkerState | None:
        """The worker that is set apart for suspects, when it has nothing else; None meanwhile.

        The last one that serves is not risked while another is on its way, unless it ``may_risk``.
        """
        serving = self._serving(lane)
        apart = [worker for worker in serving if worker.set_apart]
        if serving and not apart and (may_risk or len(serving) > 1 or not self._coming_back):
            apart = [min(serving, key=lambda worker: worker.in_flight)]
            apart[0].set_apart = True
        return next((worker for worker in apart if not worker.in_flight), None)

    def worker_for_retry(self, lane: Lane) -> WorkerState | None:
        """A worker for what is no suspect, as soon as for a full batch."""
        serving = [worker for worker in self._serving(lane) if not worker.set_apart]
        free = [worker for worker in serving if worker.in_flight <= worker.concurrent_batches]
        return min(free, key=lambda worker: worker.in_flight, default=None)

    def _serving(self, lane: Lane) -> list[WorkerState]:
        """The workers that may have a batch of the lane, as far as its model allows one more."""
        model = lane.model
        threads = model.parameters.num_batch_threads
        if threads is not None and model.in_execution >= threads:
            return []
        ids = model.workers[:1] if model.stateful else model.workers
        return [self._workers[worker_id] for worker_id in ids]
