"""How batches come to a worker: packets off the link, and the shared memory that they lie in."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from batchyard.pool.runtimes.base import Array
from batchyard.pool.worker.answers import Answers
from batchyard.wire import log, work
from batchyard.wire.arena import Mapping
from batchyard.wire.link import Link, LinkClosed, PacketLost


@dataclass(slots=True)
class Assignment:
    """A batch, and every byte of the memory that it may touch: the arena, and its regions."""

    execute: work.Execute
    arena: Array
    regions: dict[int, Array]

    def memory(self, which: int) -> Array:
        """uint8, all of the arena or of a region."""
        return self.arena if which == work.ARENA else self.regions[which]


class Ended(Exception):
    """No batch will come any more: the worker ends."""


class Intake:
    """Several threads may ask for batches. They get them in the order in which they were sent.

    The end of a link is the end of a broker. What it sent before is still read, and then batches
    come over the link that ``resume`` brings.
    """

    def __init__(
        self,
        link: Link,
        arena: memoryview,
        answers: Answers,
        on_region: Callable[[], None] = lambda: None,
        on_unload: Callable[[str, int], None] = lambda model, version: None,
    ) -> None:
        """Owns the link from now on. Batches are told to ``answers`` as they come.

        ``on_region`` is called when the first region is attached, ``on_unload`` when a version of
        a model is needed no more.
        """
        self._link = link
        self._arena = arena
        self._answers = answers
        self._regions: dict[int, Mapping] = {}
        self._on_region: Callable[[], None] | None = on_region
        self._on_unload = on_unload
        # What brokers that are gone had sent.
        self._waiting: deque[Assignment] = deque()
        self._at_end = False
        self._ended = False
        # Held while a thread waits for a packet, so that none runs a batch before another has
        # seen to its region. Given up only where the link is at its end.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)

    def next(self) -> Assignment:
        """Waits for a batch. Raises Ended."""
        with self._lock:
            while not self._waiting:
                if self._at_end:
                    self._wait()
                    continue
                assignment = self._receive()
                if assignment is not None:
                    return assignment
            return self._waiting.popleft()

    def poll(self, timeout_s: float) -> Assignment | None:
        """A batch, or None when none came in that time. Raises Ended."""
        if not self._at_end and not self._waiting and not _is_readable(self._link, timeout_s):
            return None
        # Another thread that waits for a batch has it, and will get this one.
        if not self._lock.acquire(timeout=timeout_s):
            return None
        try:
            if self._at_end and not self._waiting:
                self._wait(timeout_s)
            if self._waiting:
                return self._waiting.popleft()
            if self._at_end or not _is_readable(self._link, 0):
                return None
            return self._receive()
        finally:
            self._lock.release()

    def resume(self, link: Link) -> None:
        """Has batches come over this link, to a broker that was started anew."""
        old = self._link
        # Wakes who waits for a packet, whoever may hold the other end still. What was sent can be
        # read all the same.
        old.shut_down()
        with self._lock:
            while not self._at_end:
                with contextlib.suppress(PacketLost):
                    assignment = self._receive()
                    if assignment is not None:
                        self._waiting.append(assignment)
            # The batches that lie in them have them mapped by their views. The next broker counts
            # regions anew.
            for region in self._regions.values():
                region.close()
            self._regions.clear()
            self._answers.resume(link)
            self._link = link
            old.close()
            self._at_end = False
            self._changed.notify_all()

    def end(self) -> None:
        """Has all who wait for batches, now or later, get Ended. Batches that came run first."""
        self._ended = True
        self._link.shut_down()
        with self._lock:
            self._changed.notify_all()

    def close(self) -> None:
        """Closes the link and unmaps regions. Nobody may wait for batches any more."""
        self._link.close()
        for region in self._regions.values():
            region.close()
        self._regions.clear()

    def _wait(self, timeout_s: float | None = None) -> None:
        """Waits for the next link, with the lock held, which others may have meanwhile."""
        if self._ended:
            raise Ended
        self._changed.wait(timeout_s)

    def _receive(self) -> Assignment | None:
        """Reads a packet, with the lock held; the batch, if it was one."""
        try:
            packet, fds = self._link.receive()
        except PacketLost:
            raise
        except LinkClosed:
            self._at_end = True
            return None
        if packet[0] == work.Kind.EXECUTE:
            execute = work.Execute.from_wire(packet)
            self._answers.given(execute)
            return self._assign(execute)
        self._take(packet, fds)
        return None

    def _take(self, packet: list[Any], fds: list[int]) -> None:
        if packet[0] == work.Kind.ATTACH:
            self._attach(packet[1], fds)
        elif packet[0] == work.Kind.DETACH and packet[1] in self._regions:
            # Batches that still run keep what they read mapped by their views.
            self._regions.pop(packet[1]).close()
        elif packet[0] == work.Kind.UNLOAD:
            unload = work.Unload.from_wire(packet)
            self._on_unload(unload.model, unload.version)

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
            log.limited("error", "region_not_mapped", region=region, reason=error)
        for fd in fds:
            os.close(fd)
        if self._on_region is not None:
            self._on_region()
            self._on_region = None


def _is_readable(link: Link, timeout_s: float) -> bool:
    try:
        return bool(select.select([link], [], [], timeout_s)[0])
    except (OSError, ValueError):
        # It was closed that moment: another is in its place.
        return True
