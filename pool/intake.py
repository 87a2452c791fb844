"""How batches come to a worker: packets off the link, and the shared memory that they lie in."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from batchyard.pool.runtimes.base import Array
from batchyard.wire import log, work
from batchyard.wire.arena import Mapping
from batchyard.wire.link import Link


@dataclass(slots=True)
class Assignment:
    """A batch, and every byte of the memory that it may touch: the arena, and its regions."""

    execute: work.Execute
    arena: Array
    regions: dict[int, Array]

    def memory(self, which: int) -> Array:
        """uint8, all of the arena or of a region."""
        return self.arena if which == work.ARENA else self.regions[which]


class Intake:
    """Several threads may ask for batches. They get them in the order in which they were sent."""

    def __init__(self, link: Link, arena: memoryview, on_region: Callable[[], None]) -> None:
        """``on_region`` is called when the first region is attached."""
        self._link = link
        self._arena = arena
        self._regions: dict[int, Mapping] = {}
        self._on_region: Callable[[], None] | None = on_region
        self._lock = threading.Lock()

    def next(self) -> Assignment:
        """Waits for a batch. Raises LinkClosed."""
        # Under the lock, so that no thread runs a batch before another has seen to its region.
        with self._lock:
            while True:
                packet, fds = self._link.receive()
                if packet[0] == work.Kind.EXECUTE:
                    return self._assign(work.Execute.from_wire(packet))
                if packet[0] == work.Kind.ATTACH:
                    self._attach(packet[1], fds)
                elif packet[0] == work.Kind.DETACH and packet[1] in self._regions:
                    # Batches that still run keep what they read mapped by their views.
                    self._regions.pop(packet[1]).close()

    def _assign(self, execute: work.Execute) -> Assignment:
        arena = np.frombuffer(self._arena, np.uint8)
        if not self._regions:
            return Assignment(execute, arena, {})
        wanted = {place[3] for place in execute.inputs}
        wanted.update(copy[0] for copy in execute.copies)
        wanted.update(reply[0] for reply in execute.replies)
        regions = {
            region: np.frombuffer(self._regions[region].memory, np.uint8)
            for region in wanted
            # One that could not be mapped fails the batches that lie in it, and no others.
            if region in self._regions
        }
        return Assignment(execute, arena, regions)

    def _attach(self, region: int, fds: list[int]) -> None:
        try:
            self._regions[region] = Mapping(fds[0])
        except (OSError, ValueError, IndexError) as error:
            log.error("region_not_mapped", region=region, reason=error)
        for fd in fds:
            os.close(fd)
        if self._on_region is not None:
            self._on_region()
            self._on_region = None
