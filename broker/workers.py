"""Workers as the broker sees them, and which of them have room for a model's batches, and when."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass, field

from batchyard.broker.events import Batch
from batchyard.broker.policy import NEVER


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
    # The kind of its device: what is learned of one is true for the others.
    kind: str = field(init=False)

    def __post_init__(self) -> None:
        self.kind = self.device.partition(":")[0]

    @property
    def in_flight(self) -> int:
        """Batches handed over and not answered."""
        return len(self.batches) + self.orphans

    @property
    def free_at(self) -> float:
        """When it is predicted to run fewer batches than it may; NEVER if nobody can say so
        exactly."""
        steady = (ends_at(batch) for batch in self.batches.values() if batch.is_steady)
        return min(steady, default=NEVER)

    @property
    def running_s(self) -> float:
        """How long the batch that ends first was predicted to take."""
        return min(self.batches.values(), key=ends_at).expected_s or 0.0

    @property
    def starts(self) -> list[float]:
        """When it is predicted to take up each of as many batches as it runs at once: -NEVER is
        now, or at any moment."""
        ends = [ends_at(b) for b in self.batches.values() if b.running_since < NEVER]
        room = self.concurrent_batches
        starts = sorted(-NEVER if end == NEVER else end for end in ends)[:room]
        starts = [-NEVER] * (room - len(starts)) + starts
        for batch in self.batches.values():
            if batch.running_since == NEVER:
                starts[0] += batch.expected_s or 0.0
                starts.sort()
        return starts


def ends_at(batch: Batch) -> float:
    """When it is predicted to end; NEVER when that is not known, or it waits for its turn."""
    return NEVER if batch.expected_s is None else batch.running_since + batch.expected_s


class Room:
    """The workers that serve a model, by when they have room.

    Kept up to date worker by worker: with hundreds of them each look would cost as much as many
    requests.
    """

    def __init__(self, workers: Iterable[WorkerState]) -> None:
        self._order = {worker: order for order, worker in enumerate(workers)}
        self._places: dict[WorkerState, tuple[_Queue, _Place]] = {}
        self._idle: _Queue = []
        self._unknown: _Queue = []
        self._busy: _Queue = []
        self._starts: list[float] = []
        self._starts_of: dict[WorkerState, list[float]] = {}
        # Those that changed since anybody looked: at who has room, and at when.
        self._moved = set(self._order)
        self._restarted = set(self._order)

    @property
    def idle(self) -> Iterable[WorkerState]:
        """Those that run fewer batches than they may, the least loaded first; of equals always the
        same: under light load it stays warm."""
        if self._moved:
            self._look_again()
        return map(_worker_at, self._idle)

    @property
    def unknown(self) -> Iterable[WorkerState]:
        """Those that run as many as they may, and nobody knows for how long."""
        return map(_worker_at, self._unknown)

    @property
    def busy(self) -> Iterable[WorkerState]:
        """Those that run as many as they may, the first to be free first."""
        return map(_worker_at, self._busy)

    @property
    def starts(self) -> list[float]:
        """When each is predicted to take up as many batches as it runs at once, increasing."""
        for worker in self._restarted:
            for start in self._starts_of.get(worker, ()):
                del self._starts[bisect_left(self._starts, start)]
            self._starts_of[worker] = worker.starts
            for start in self._starts_of[worker]:
                insort(self._starts, start)
        self._restarted.clear()
        return self._starts

    def changed(self, worker: WorkerState) -> None:
        """A worker has more or fewer batches than before."""
        if worker in self._order:
            self._moved.add(worker)
            self._restarted.add(worker)

    def _look_again(self) -> None:
        for worker in self._moved:
            if worker in self._places:
                queue, place = self._places.pop(worker)
                del queue[bisect_left(queue, place[:2], key=_sort_key)]
            self._place(worker)
        self._moved.clear()

    def _place(self, worker: WorkerState) -> None:
        in_flight, room = worker.in_flight, worker.concurrent_batches
        if in_flight > room:
            return
        if in_flight < room:
            queue, key = self._idle, in_flight / room
        else:
            key = worker.free_at
            queue = self._unknown if key == NEVER else self._busy
        place = key, self._order[worker], worker
        insort(queue, place, key=_sort_key)
        self._places[worker] = queue, place


# What it is sorted by, the worker's place among others, the worker.
_Place = tuple[float, int, WorkerState]
_Queue = list[_Place]


def _sort_key(place: _Place) -> tuple[float, int]:
    return place[:2]


def _worker_at(place: _Place) -> WorkerState:
    return place[2]
