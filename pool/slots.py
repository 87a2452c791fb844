"""The places of a pool, and the processes that hold them one after the other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from batchyard.pool.model_set import Key, has_all
from batchyard.pool.restarts import Restarts
from batchyard.pool.versions import Found
from batchyard.wire.control import ModelSource


class Stage(Enum):
    """Where a worker's process is in its life."""

    LOADING = "loading"
    READY = "ready"
    RETIRING = "retiring"  # it gets no more batches
    ENDING = "ending"  # it has none left, and was told to end
    KILLED = "killed"  # while it loaded what nobody wants any more


@dataclass(slots=True, eq=False)
class Process:
    """A worker's process, from its start until it is reaped.

    ``found`` are the versions that were there when it was started. ``tries_target``: it loads all
    that is to be served, though it may not load. ``has_served``: it was given batches.
    ``is_linked``: the broker that runs now has said that it is ready.
    """

    id: int
    sources: Mapping[Key, ModelSource]
    found: Found
    tries_target: bool = False
    stage: Stage = Stage.LOADING
    ready_at: float | None = None
    has_served: bool = False
    is_linked: bool = False
    kill_at: float = math.inf
    # Why it was killed, if we did.
    why: str = ""


@dataclass(slots=True, eq=False)
class Slot:
    """A place for a worker.

    ``current`` serves, ``successor`` loads to take its place, ``leaving`` held it before.
    ``start_at`` is when the next successor is due, ``tries_target`` whether that one loads all that
    is to be served. ``restarts`` counts those after a death.
    """

    index: int
    replaced_beside: bool
    current: Process | None = None
    successor: Process | None = None
    leaving: Process | None = None
    start_at: float | None = None
    tries_target: bool = False
    restarts: int = 0
    has_failed: bool = False
    try_again_at: float = math.inf
    deaths: Restarts = field(default_factory=Restarts)

    @property
    def processes(self) -> list[Process]:
        """Those that are not reaped."""
        return [p for p in (self.current, self.successor, self.leaving) if p is not None]


def next_to_replace(slots: Sequence[Slot], needed: Mapping[Key, ModelSource]) -> Slot | None:
    """The slot whose process is to make room for one that has all that is ``needed``.

    None while a process loads or leaves anywhere, for slots are replaced one after the other, and
    when none lacks anything. A process whose device has no room for another beside it is not
    replaced before others serve meanwhile, if there are to be others.
    """
    if any(slot.successor or slot.leaving for slot in slots):
        return None
    serving = [slot for slot in slots if slot.current is not None]
    if not all(slot.current.is_linked for slot in serving if slot.current):
        return None
    for slot in serving:
        assert slot.current is not None
        if has_all(slot.current.sources, needed):
            continue
        is_alone = all(other.has_failed for other in slots if other is not slot)
        if slot.replaced_beside or len(serving) > 1 or is_alone:
            return slot
    return None


def is_everywhere(slots: Iterable[Slot], needed: Mapping[Key, ModelSource]) -> bool:
    """Whether every slot that has a process has one that serves, or will serve, the ``needed``.

    A slot without a process does not count: its next one will have it.
    """
    holders = [
        process
        for slot in slots
        for process in (slot.current, slot.successor)
        if process is not None and process.stage is not Stage.KILLED
    ]
    serving = [process for process in holders if process.stage is Stage.READY]
    return bool(serving) and all(has_all(process.sources, needed) for process in holders)
