"""Which lane's batch goes next, to which worker, and when there may be another.

Applies ``broker.policy`` to the lanes that hold something and to the workers there are.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Container, Mapping, Sequence
from functools import partial

from batchyard.broker import policy
from batchyard.broker.catalog import ServedModel
from batchyard.broker.lane import Lane
from batchyard.broker.policy import NEVER
from batchyard.broker.queue import RequestGroup
from batchyard.broker.shares import Shares
from batchyard.broker.workers import Room, WorkerState


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
        # Who has room for each model's batches, by kind of device, as far as that was asked for.
        self._rooms: dict[ServedModel, dict[str, Room]] = {}
        # Whether some worker may be set apart.
        self.has_set_apart = False
        self.shares = Shares()

    def something_changed(self) -> None:
        """Lanes are not what they were."""
        self._next = None

    def worker_changed(self, worker: WorkerState) -> None:
        """A worker has more or fewer batches than before."""
        for rooms in self._rooms.values():
            if worker.kind in rooms:
                rooms[worker.kind].changed(worker)

    def workers_changed(self) -> None:
        """There are other workers than before, or they serve other models."""
        self._rooms.clear()

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
        if self._next is None and self.choose(now) is not None:
            return now
        return NEVER if self._next is None else self._next

    def choose(self, now: float) -> tuple[Lane, WorkerState] | None:
        """The most urgent lane that can go out now, and the worker that gets its batch."""
        short_at = self._short_of_memory_at
        next_at = NEVER
        ripe: list[Lane] = []
        for lane in self._waiting:
            ripe_at = policy.ripe_at(lane)
            if short_at is not None and ripe_at <= short_at:
                continue
            if ripe_at <= now:
                ripe.append(lane)
            elif ripe_at < next_at:
                next_at = min(next_at, max(ripe_at, self._worker_for(lane, now).at))
        if len(ripe) > 1:
            hogs = self.shares.hogs(ripe, now)
            ripe.sort(key=lambda lane: policy.urgency(lane, lane.model in hogs))
        # Busy workers that more urgent lanes wait for.
        reserved: set[WorkerState] = set()
        for lane in ripe:
            worker, at = self._worker_for(lane, now, reserved)
            if worker is not None and at <= now:
                self._next = None
                return lane, worker
            next_at = min(next_at, at)
            if worker is not None:
                reserved.add(worker)
        # Nothing changes before that.
        self._next = next_at
        return None

    def _worker_for(
        self, lane: Lane, now: float, reserved: Container[WorkerState] = ()
    ) -> policy.Choice[WorkerState]:
        """The worker that gets the lane's next batch, and when."""
        model = lane.model
        threads = model.parameters.num_batch_threads
        if threads is not None and model.in_execution >= threads:
            return policy.Choice(None, NEVER)
        rooms = self._rooms_for(model)
        if len(rooms) > 1:
            return self._of_kinds(lane, rooms, now, reserved)
        for room in rooms.values():
            return policy.choose_worker(lane, room, now, reserved)
        return policy.Choice(None, NEVER)

    def _of_kinds(
        self, lane: Lane, rooms: Mapping[str, Room], now: float, reserved: Container[WorkerState]
    ) -> policy.Choice[WorkerState]:
        """The quickest kind of device that has room now; else whichever has room first.

        A slower one does not get what it would have to drop, and a quicker one could serve.
        """
        rows = min(lane.queued_rows, lane.max_rows)
        takes = {kind: lane.expected(rows, kind) or 0.0 for kind in rooms}
        quickest = min(takes.values())
        first: policy.Choice[WorkerState] = policy.Choice(None, NEVER)
        for kind in sorted(takes, key=takes.__getitem__):
            if takes[kind] > quickest and now + takes[kind] > lane.earliest_deadline:
                break
            choice = policy.choose_worker(lane, rooms[kind], now, reserved)
            if choice.at < first.at:
                first = choice
            if first.at <= now:
                break
        return first

    def _rooms_for(self, model: ServedModel) -> dict[str, Room]:
        rooms = self._rooms.get(model)
        if rooms is None:
            by_kind: dict[str, list[WorkerState]] = {}
            for worker in self._serving(model):
                if not worker.set_apart:
                    by_kind.setdefault(worker.kind, []).append(worker)
            rooms = self._rooms[model] = {kind: Room(some) for kind, some in by_kind.items()}
        return rooms

    def start_at(self, worker: WorkerState, now: float) -> float:
        """When a batch that is handed to a worker now is predicted to be taken up."""
        if worker.in_flight < worker.concurrent_batches:
            return now
        return max(now, worker.starts[0])

    def late_requests(self, group: RequestGroup, now: float) -> Sequence[int]:
        """Which of a message's requests, increasing, the predicted backlog makes late.

        Only what waits in their own lane is counted: it is better to find out later that other
        models need the devices than to refuse what could be served.
        """
        if group.deadlines is None:
            rows = self._rows_in_time(group, group.earliest_deadline, group.total_rows, now)
            return range(group.count if rows is None else group.fitting(rows), group.count)
        late: list[int] = []
        rows_before = 0
        # As their lane orders them; those that are refused are in nobody's way.
        for request in sorted(range(group.count), key=group.deadlines.__getitem__):
            rows = group.row_start(request + 1) - group.row_start(request)
            enough = rows_before + rows
            deadline = group.deadlines[request]
            in_time = (
                None if deadline == NEVER else self._rows_in_time(group, deadline, enough, now)
            )
            if in_time is not None and in_time < enough:
                late.append(request)
            else:
                rows_before = enough
        return sorted(late)

    def _rows_in_time(
        self, group: RequestGroup, deadline: float, rows: int, now: float
    ) -> int | None:
        """How many of so many rows that come now can be served by a deadline; None if all, as far
        as is known."""
        lane = group.lane
        model = lane.model
        together = lane.queued_rows + rows
        before: int | None = None
        in_time = 0
        for kind, room in self._rooms_for(model).items():
            starts = self._starts(model, room)
            takes = lane.least(min(together, lane.max_rows), kind, now)
            if takes is None or not starts:
                # Nobody knows.
                return None
            if together <= lane.max_rows and now + takes <= deadline and starts[0] <= now:
                # It runs at once: there is nothing to be careful about.
                return None
            if before is None:
                before = lane.rows_before(deadline)
            enough = before + rows
            in_time += policy.rows_in_time(
                lane, deadline, now, starts, partial(lane.least, kind=kind, now=now), enough
            )
            if in_time >= enough:
                return None
        # Without any room those that serve are set apart for suspects, nobody knows how long.
        return None if before is None else max(in_time - before, 0)

    def _starts(self, model: ServedModel, room: Room) -> list[float]:
        """When batches of a model can be taken up, increasing, as far as it allows so many."""
        starts = room.starts
        threads = model.parameters.num_batch_threads
        if threads is None:
            return starts
        running = min(model.in_execution, threads)
        idle = bisect_right(starts, -NEVER)
        at_once = min(idle, threads - running)
        return [*starts[:at_once], *starts[idle : idle + threads - at_once]]

    def worker_for_suspect(self, lane: Lane, may_risk: bool) -> WorkerState | None:
        """The worker that is set apart for suspects, when it has nothing else; None meanwhile.

        The last one that serves is not risked while another is on its way, unless it ``may_risk``.
        """
        serving = self._allowed(lane.model)
        apart = [worker for worker in serving if worker.set_apart]
        if serving and not apart and (may_risk or len(serving) > 1 or not self._coming_back):
            apart = [min(serving, key=lambda worker: worker.in_flight)]
            apart[0].set_apart = self.has_set_apart = True
            self.workers_changed()
        return next((worker for worker in apart if not worker.in_flight), None)

    def worker_for_retry(self, lane: Lane) -> WorkerState | None:
        """A worker for what is no suspect, as soon as for a full batch."""
        serving = [worker for worker in self._allowed(lane.model) if not worker.set_apart]
        free = [worker for worker in serving if worker.in_flight <= worker.concurrent_batches]
        return min(free, key=lambda worker: worker.in_flight, default=None)

    def release_apart(self) -> None:
        """Those that are set apart and have nothing more to run serve everybody again."""
        self.has_set_apart = False
        for worker in self._workers.values():
            if worker.set_apart and not worker.in_flight:
                worker.set_apart = False
                self.workers_changed()
            self.has_set_apart = self.has_set_apart or worker.set_apart

    def _serving(self, model: ServedModel) -> list[WorkerState]:
        ids = model.workers[:1] if model.stateful else model.workers
        return [self._workers[worker_id] for worker_id in ids]

    def _allowed(self, model: ServedModel) -> list[WorkerState]:
        """The workers that serve a model, as far as it allows one batch more."""
        threads = model.parameters.num_batch_threads
        if threads is not None and model.in_execution >= threads:
            return []
        return self._serving(model)
