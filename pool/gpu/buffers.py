"""Memory on the card that batches' inputs lie in, events, and streams: made once, used again.

What is used no more comes back by the end of the last reference to it, which may be on any thread
and at any moment, also while that same thread takes another: so it is only put into a deque then,
without a lock, and looked at by who takes next.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

from batchyard.pool.gpu.driver import OUT_OF_MEMORY, CudaError, Driver
from batchyard.wire.errors import ResourceExhausted

# So many are kept beyond as many as there were batches under way at once: models keep inputs.
_SPARE_BEYOND = 1
# What the card's allocator gives out, at least.
_GRANULE = 2 << 20


# Address, bytes, and streams that may read it still.
_Returned = tuple[int, int, frozenset[int]]


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


class Hold:
    """What everyone has of a lease who was given an array in it: so a batch sees if one is left."""

    __slots__ = ("__weakref__", "lease")

    def __init__(self, lease: Lease) -> None:
        self.lease = lease


class Buffers:
    """Memory on the card, in pieces that each hold the inputs of a batch."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._lock = threading.Lock()
        self._returned: deque[_Returned] = deque()
        self._spare: list[_Returned] = []
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
            for i, spare in enumerate(self._spare):
                if spare[1] >= nbytes:
                    del self._spare[i]
                    break
            else:
                spare = self._allocate(nbytes)
            self._under_way += 1
            self._under_way_max = max(self._under_way_max, self._under_way)
        pointer, size, readers = spare
        lease = Lease(pointer, size, self._returned)
        try:
            self._await(readers, stream)
        except BaseException:
            self.end()
            raise
        return lease

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
            self._spare.append(self._returned.popleft())
        # The largest are kept: smaller ones are from before batches grew.
        self._spare.sort(key=lambda spare: -spare[1])
        while len(self._spare) > self._under_way_max + _SPARE_BEYOND:
            self._free(self._spare.pop())

    def _allocate(self, nbytes: int) -> _Returned:
        # Those that are too small only take memory away.
        while self._spare:
            self._free(self._spare.pop())
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
            return pointer, size, frozenset()
        free, total = self._driver.memory()
        raise ResourceExhausted(
            f"the card has no memory for a batch's inputs of {nbytes} bytes: {free} of {total} are "
            "free; give models less of it, or batches fewer rows"
        )

    def _free(self, spare: _Returned) -> None:
        if spare[2]:
            self._driver.synchronize()
        self.nbytes -= spare[1]
        self._driver.free(spare[0])

    def _await(self, readers: frozenset[int], stream: Any) -> None:
        """Has ``stream`` wait for all that is enqueued on streams that had the buffer."""
        if not readers:
            return
        event = self._driver.event(timed=False)
        try:
            for reader in readers:
                self._driver.record(event, self._driver.foreign_stream(reader))
                self._driver.wait_for(stream, event)
        except CudaError as error:
            if error.is_sticky:
                raise
            # A stream that is no more; what was enqueued on it may be under way still.
            self._driver.synchronize()
        finally:
            self._driver.destroy_event(event)


class Event:
    """An event that goes back to where it came from with the last reference to it.

    What waits for it on the card does so still then: CUDA takes the state of a wait when it is
    enqueued.
    """

    __slots__ = ("_spare", "handle")

    def __init__(self, handle: Any, spare: deque[Any]) -> None:
        self.handle = handle
        self._spare = spare

    def __del__(self) -> None:
        self._spare.append(self.handle)


class Events:
    """Events, of those that are timed or of those that are not."""

    def __init__(self, driver: Driver, timed: bool) -> None:
        self._driver = driver
        self._timed = timed
        self._spare: deque[Any] = deque()

    def record(self, stream: Any) -> Event:
        """An event for all that is enqueued on the stream so far."""
        try:
            handle = self._spare.pop()
        except IndexError:
            handle = self._driver.event(self._timed)
        event = Event(handle, self._spare)
        self._driver.record(handle, stream)
        return event

    def close(self) -> None:
        """Frees what is not in use."""
        while self._spare:
            self._driver.destroy_event(self._spare.pop())


class Streams:
    """Streams, each for one batch at a time."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._spare: deque[Any] = deque()

    def take(self) -> Any:
        """A stream on which nothing is enqueued."""
        try:
            return self._spare.pop()
        except IndexError:
            return self._driver.stream()

    def give_back(self, stream: Any) -> None:
        """Everything on it is done."""
        self._spare.append(stream)

    def close(self) -> None:
        """Ends what is not in use."""
        while self._spare:
            self._driver.destroy_stream(self._spare.pop())
