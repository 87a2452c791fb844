"""Which lane's batch goes next, to which worker, and when there may be another.

Applies ``broker.policy`` to the lanes that hold something and to the workers there are.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from batchyard.broker import policy
from batchyard.broker.catalog import ServedModel
from batchyard.broker.events import Batch
from batchyard.broker.lane import Lane
from batchyard.broker.policy import NEVER
from batchyard.broker.queue import RequestGroup
from batchyard.broker.shares import Shares


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

    @property
    def kind(self) -> str:
        """The kind of its device: what is learned of one is true for the others."""
        return self.device.partition(":")[0]

    @property
    def free_at(self) -> float:
        """When it is predicted to run fewer batches than it may; NEVER if that is not known."""
        return min((ends_at(batch) for batch in self.batches.values()), default=NEVER)

    @property
    def running_s(self) -> float:
        """How long the batch that ends first was predicted to take."""
        return min(self.batches.values(), key=ends_at).expected_s or 0.0

    def starts(self, now: float) -> list[float]:
        """When it is predicted to take up each of as many batches as it runs at once."""
        room = self.concurrent_batches
        running = [ends_at(b) for b in self.batches.values() if b.running_since < NEVER]
        # What is overdue, or of which nothing is known, may end at any moment.
        ends = sorted(now if end == NEVER else max(end, now) for end in running)[:room]
        ends = [now] * (room - len(ends)) + ends
        for batch in self.batches.values():
            if batch.running_since == NEVER:
                ends[0] += batch.expected_s or 0.0
                ends.sort()
        return ends


def ends_at(batch: Batch) -> float:
    """When it is predicted to end; NEVER when that is not known, or it waits for its turn."""
    return NEVER if batch.expected_s is None else batch.running_since + batch.expected_s


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
        # When the next batch can go out, if that is known.
        self._next: float | None = None
        # When each model's workers are free, increasing, as far as that was asked for.
        self._starts: dict[ServedModel, list[float]] = {}
        self.shares = Shares()

    def something_changed(self) -> None:
        """Lanes are not what they were."""
        self._next = None

    def workers_changed(self) -> None:
        """Workers have other batches, or are others."""
        self._starts.clear()

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

    def next_ripe(self, now: float) -> float:
        """When the next batch can go out; may be in the past.

        Lanes that are ripe and wait for a worker of which nothing is known, or for memory, have no
        time of their own.
        """
        if self._next is None:
            short_at = self._short_of_memory_at
            earliest = NEVER
            for lane in self._waiting:
                ripe_at = policy.ripe_at(lane)
                if short_at is not None and ripe_at <= short_at:
                    continue
                if ripe_at < earliest:
                    _, at = self._worker_for(lane, now)
                    earliest = min(earliest, max(ripe_at, at))
            self._next = earliest
        return self._next

    def choose(self, now: float) -> tuple[Lane, WorkerState] | None:
        """The most urgent lane that can go out now, and the worker that gets its batch."""
        found: list[tuple[Lane, WorkerState]] = []
        next_at = NEVER
        for lane in self._waiting:
            ripe_at = policy.ripe_at(lane)
            if ripe_at > now and ripe_at >= next_at:
                continue
            worker, at = self._worker_for(lane, now)
            if worker is None or ripe_at > now:
                next_at = min(next_at, max(ripe_at, at))
            else:
                found.append((lane, worker))
        if not found:
            # Nothing changes before that.
            self._next = next_at
            return None
        self._next = None
        if len(found) == 1:
            return found[0]
        hogs = self.shares.hogs((lane for lane, _ in found), now)
        return min(found, key=lambda pair: policy.urgency(pair[0], pair[0].model in hogs))

    def _worker_for(self, lane: Lane, now: float) -> tuple[WorkerState | None, float]:
        """The worker that gets the lane's next batch, None when it has to wait; and until when."""
        serving = [worker for worker in self._serving(lane) if not worker.set_apart]
        return policy.choose_worker(lane, serving, now)

    def start_at(self, worker: WorkerState, now: float) -> float:
        """When a batch that is handed to a worker now is predicted to be taken up."""
        if worker.in_flight < worker.concurrent_batches or worker.free_at == NEVER:
            return now
        return max(now, worker.free_at)

    def requests_in_time(self, group: RequestGroup, now: float) -> int:
        """How many of a message's requests, from the first, the predicted backlog lets be in time.

        Only what waits in their own lane is counted: it is better to find out later that other
        models need the devices than to refuse what could be served.
        """
        deadline = group.earliest_deadline if group.deadlines is None else max(group.deadlines)
        lane = group.lane
        starts = self._starts_for(lane.model, now)
        if deadline == NEVER or not starts:
            return group.count
        kind = self._workers[lane.model.workers[0]].kind
        before = lane.rows_before(deadline)
        longest = lane.least(lane.max_rows, kind, now)
        if longest is None:
            return group.count
        enough = before + group.total_rows
        idle = bisect_right(starts, now)
        if enough <= idle * lane.max_rows and deadline - now >= longest + policy.slack(longest):
            return group.count
        starts = [max(start, now) for start in starts] if starts[0] < now else starts
        rows = policy.rows_in_time(
            lane, deadline, starts, lambda rows: lane.least(rows, kind, now), enough
        )
        return group.count if rows >= enough else group.fitting(max(rows - before, 0))

    def _starts_for(self, model: ServedModel, now: float) -> list[float]:
        starts = self._starts.get(model)
        if starts is None:
            ids = model.workers[:1] if model.stateful else model.workers
            workers = [self._workers[worker_id] for worker_id in ids]
            starts = sorted(at for worker in workers for at in worker.starts(now))
            threads = model.parameters.num_batch_threads
            self._starts[model] = starts = starts[:threads]
        return starts

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
