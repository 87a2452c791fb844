"""Memory on the card that batches' inputs lie in: allocated once, used again.

A buffer comes back with the last reference to it, which may go on any thread and at any moment,
also while that same thread takes another one: so it is only put into a deque then, without a lock,
and looked at by who takes next.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from batchyard.pool.gpu.driver import OUT_OF_MEMORY, CudaError, Driver
from batchyard.pool.gpu.streams import Event, Events
from batchyard.wire.errors import ResourceExhausted

# So many are kept beyond as many as there were batches under way at once: for inputs that models
# keep, or that frameworks let go of a little later than they are done with them.
_SPARE_BEYOND = 1
# What the card's allocator gives out, at least.
_GRANULE = 2 << 20


class Lease:
    """A buffer in use; it comes back with the last reference to it."""

    __slots__ = ("_returned", "nbytes", "pointer", "streams")

    def __init__(self, pointer: int, nbytes: int, returned: deque[_Returned]) -> None:
        self.pointer = pointer
        self.nbytes = nbytes
        # The addresses of streams that may read it.
        self.streams: set[int] = set()
        self._returned = returned

    def __del__(self) -> None:
        self._returned.append((self.pointer, self.nbytes, frozenset(self.streams)))


# Address, bytes, and streams that may read it still.
_Returned = tuple[int, int, frozenset[int]]


class Hold:
    """What everyone has of a lease who was given an array in it: so a batch sees if one is left."""

    __slots__ = ("__weakref__", "lease")

    def __init__(self, lease: Lease) -> None:
        self.lease = lease


@dataclass(slots=True)
class _Spare:
    """A buffer that nobody has. What is enqueued may read it until ``reads`` are over."""

    pointer: int
    nbytes: int
    reads: list[Event] = field(default_factory=list)


class Buffers:
    """Memory on the card, in pieces that each hold the inputs of a batch."""

    def __init__(self, driver: Driver, events: Events) -> None:
        self._driver = driver
        self._events = events
        self._lock = threading.Lock()
        self._returned: deque[_Returned] = deque()
        self._spare: list[_Spare] = []
        self._largest = _GRANULE
        self._under_way = self._under_way_max = 0
        # All that was allocated and not freed.
        self.nbytes = 0

    def take(self, nbytes: int, stream: Any) -> Lease:
        """A buffer that may be written to by what is enqueued on ``stream`` from now on.

        ``end`` is called when its batch is over. Raises ResourceExhausted when the card has no
        memory for it.
        """
        with self._lock:
            self._collect()
            self._largest = max(self._largest, nbytes)
            spare = self._choose(nbytes)
            for read in spare.reads:
                self._driver.wait_for(stream, read.handle)
            self._under_way += 1
            self._under_way_max = max(self._under_way_max, self._under_way)
        return Lease(spare.pointer, spare.nbytes, self._returned)

    def end(self) -> None:
        """A batch that took a buffer is over. The buffer may be in use still."""
        with self._lock:
            self._under_way -= 1

    def close(self) -> None:
        """Frees what is not in use."""
        with self._lock:
            self._collect()
            while self._spare:
                self._free(self._spare.pop())

    def _collect(self) -> None:
        while self._returned:
            pointer, nbytes, readers = self._returned.popleft()
            self._spare.append(_Spare(pointer, nbytes, self._reads(readers)))
        # The largest are kept: smaller ones are from before batches grew.
        self._spare.sort(key=lambda spare: -spare.nbytes)
        while len(self._spare) > self._under_way_max + _SPARE_BEYOND:
            self._free(self._spare.pop())

    def _reads(self, readers: frozenset[int]) -> list[Event]:
        """Events for all that is enqueued on streams that had a buffer after its batch was over."""
        try:
            return [self._events.record(self._driver.foreign_stream(reader)) for reader in readers]
        except CudaError:
            # A stream that is no more; what was enqueued on it may be under way still. This raises
            # where the context is broken.
            self._driver.synchronize()
            return []

    def _choose(self, nbytes: int) -> _Spare:
        """A spare buffer that is large enough, or a new one."""
        fitting = [spare for spare in self._spare if spare.nbytes >= nbytes]
        for spare in fitting:
            if all(self._driver.is_over(read.handle) for read in spare.reads):
                self._spare.remove(spare)
                return spare
        # The transfer would wait for what computes now, which it is to overlap. One more buffer
        # makes up for that; two would only take memory.
        if len(fitting) <= _SPARE_BEYOND:
            new = self._allocate(nbytes)
            if new is not None:
                return new
        if fitting:
            self._spare.remove(fitting[0])
            return fitting[0]
        free, total = self._driver.memory()
        raise ResourceExhausted(
            f"the card has no memory for a batch's inputs of {nbytes} bytes: {free} of {total} are "
            "free; give models less of it, or batches fewer rows"
        )

    def _allocate(self, nbytes: int) -> _Spare | None:
        for spare in [spare for spare in self._spare if spare.nbytes < nbytes]:
            # It would only take memory away.
            self._spare.remove(spare)
            self._free(spare)
        # As large as any so far: soon, all buffers fit all batches.
        largest = -(-self._largest // _GRANULE) * _GRANULE
        for size in (largest, nbytes):
            try:
                pointer = self._driver.allocate(size)
            except CudaError as error:
                if error.name != OUT_OF_MEMORY:
                    raise
                continue
            self.nbytes += size
            return _Spare(pointer, size)
        return None

    def _free(self, spare: _Spare) -> None:
        for read in spare.reads:
            self._driver.synchronize_event(read.handle)
        self.nbytes -= spare.nbytes
        self._driver.free(spare.pointer)
