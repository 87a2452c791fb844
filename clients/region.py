"""The memory that a client shares with the server: arrays in it are named, not sent.

The broker made it and gave it to this client alone; who has which part of it is decided here. A
part is free again when the last array over it is gone, wherever that array came from: made by
the caller, copied from what the caller gave, or outputs that a worker wrote.
"""

from __future__ import annotations

import math
import operator
import threading
import weakref
from collections import deque
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from batchyard.clients.inputs import Array
from batchyard.wire.arena import ALIGNMENT, Mapping
from batchyard.wire.blocks import Block, BlockAllocator

# Memory that is gone through before the first is used again: so many times what is in use.
_WINDOW = 2
_WINDOW_MIN = 1 << 20


class _Lease(weakref.ref[Array]):
    """Tells when the last array over a block is gone."""

    __slots__ = ("block",)
    block: Block


class ClientRegion:
    """Any thread may use it."""

    def __init__(self, fd: int) -> None:
        """Maps the region ``fd``. Raises OSError and ValueError."""
        self._mapping = Mapping(fd)
        self._allocator = BlockAllocator(self._mapping.nbytes // ALIGNMENT * ALIGNMENT)
        self._lock = threading.Lock()
        self._closed = False
        # Where the last block that was handed out ends.
        self._next = 0
        # Arrays die anywhere, also while this thread allocates: then a lock would wait for itself.
        self._freed: deque[Block] = deque()
        # By their block's offset.
        self._leases: dict[int, _Lease] = {}
        memory = np.frombuffer(self._mapping.memory, np.uint8)
        self._address: int = memory.__array_interface__["data"][0]

    def empty(self, shape: Sequence[int], dtype: np.dtype) -> Array | None:
        """An array of values that mean nothing yet; None when there is no room for it.

        Python objects are never in shared memory. Raises ValueError for what is no shape.
        """
        if min(shape, default=0) < 0:
            raise ValueError(f"negative dimensions are not allowed: {tuple(shape)}")
        nbytes = math.prod((dtype.itemsize, *shape))
        block = self._allocate(nbytes) if nbytes and not dtype.hasobject else None
        if block is None:
            return None
        # Every array that is made of this one has it for its base. By frombuffer, because that
        # keeps the memory mapped: an ndarray() of the same memoryview does not.
        try:
            base = np.frombuffer(self._mapping.memory, np.uint8, nbytes, block.offset)
        except ValueError:
            # Closed by another thread meanwhile.
            return None
        lease = _Lease(base, self._ended)
        lease.block = block
        self._leases[block.offset] = lease
        return np.ndarray(tuple(shape), dtype, base)

    def offset_of(self, array: Array) -> int | None:
        """Where an array's memory lies in the region; None when it does not lie there."""
        offset: int = array.__array_interface__["data"][0] - self._address
        return offset if 0 <= offset <= self._mapping.nbytes - array.nbytes else None

    def close(self) -> None:
        """Lets go of the memory, as soon as the last array over it is gone."""
        with self._lock:
            self._closed = True
            self._mapping.close()

    def _allocate(self, nbytes: int) -> Block | None:
        with self._lock:
            if self._closed:
                return None
            while self._freed:
                self._allocator.free(self._freed.popleft())
            allocator = self._allocator
            # One after the other, so that rows of a batch lie in one piece and can be read in
            # place; but not through all of the memory: what was used lately is in the caches.
            if self._next + nbytes > max(_WINDOW * (allocator.used_nbytes + nbytes), _WINDOW_MIN):
                self._next = 0
            block = allocator.allocate(nbytes, self._next)
            if block is not None:
                self._next = block.offset + block.nbytes
            return block

    def _ended(self, lease: weakref.ref[Array]) -> None:
        assert isinstance(lease, _Lease)
        del self._leases[lease.block.offset]
        self._freed.append(lease.block)


def empty(region: ClientRegion | None, shape: int | Sequence[int], dtype: npt.DTypeLike) -> Array:
    """An array in the region; an ordinary one without a region, or when there is no room in it."""
    dims = tuple(shape) if isinstance(shape, Sequence) else (operator.index(shape),)
    array = None if region is None else region.empty(dims, np.dtype(dtype))
    return np.empty(dims, dtype) if array is None else array
