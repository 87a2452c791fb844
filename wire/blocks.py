"""Which bytes of the arena belong to whom: an address-ordered first-fit allocator.

First fit from the lowest address keeps fragmentation low (Wilson et al., "Dynamic Storage
Allocation: A Survey and Critical Review", 1995) and hands out again and again the pages that
were touched already: a page touched for the first time costs about 0.4 us.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import NamedTuple

from batchyard.wire.arena import align


class Block(NamedTuple):
    """``nbytes`` bytes of the arena from ``offset``; both multiples of 64."""

    offset: int
    nbytes: int


class BlockAllocator:
    """Hands out blocks of an arena of ``nbytes`` bytes. Pure bookkeeping: touches no memory."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.used_nbytes = 0
        # Free extents by address; neighbours are always merged.
        self._offsets: list[int] = [0]
        self._sizes: list[int] = [nbytes]

    def allocate(self, nbytes: int, start: int = 0) -> Block | None:
        """A block of at least ``nbytes`` bytes, or None when no free extent is that large.

        The first that lies behind ``start``, a multiple of 64; else the first of all.
        """
        want = align(max(nbytes, 1))
        found = self._take(want, start)
        return self._take(want, 0) if found is None and start else found

    def reserve(self, block: Block) -> None:
        """Hands out just this block. Raises ValueError when any of it is not free."""
        i = bisect_left(self._offsets, block.offset + 1) - 1
        end = block.offset + block.nbytes
        if i < 0 or self._offsets[i] + self._sizes[i] < end or block.nbytes < 1:
            raise ValueError(f"{block} is not free")
        after = self._offsets[i] + self._sizes[i] - end
        before = block.offset - self._offsets[i]
        pieces = [(self._offsets[i], before), (end, after)]
        kept = [(offset, size) for offset, size in pieces if size]
        self._offsets[i : i + 1] = [offset for offset, _ in kept]
        self._sizes[i : i + 1] = [size for _, size in kept]
        self.used_nbytes += block.nbytes

    def _take(self, want: int, start: int) -> Block | None:
        for i, size in enumerate(self._sizes):
            first = self._offsets[i]
            offset = first if first >= start else start
            after = first + size - offset - want
            if after < 0:
                continue
            if offset > first:
                # What lies before stays free.
                self._sizes[i] = offset - first
                if after:
                    self._offsets.insert(i + 1, offset + want)
                    self._sizes.insert(i + 1, after)
            elif after:
                self._offsets[i] += want
                self._sizes[i] = after
            else:
                del self._offsets[i], self._sizes[i]
            self.used_nbytes += want
            return Block(offset, want)
        return None

    def free(self, block: Block) -> None:
        """Takes a block back. Raises ValueError when any of it is free already."""
        start, end = block.offset, block.offset + block.nbytes
        i = bisect_left(self._offsets, start)
        before_end = self._offsets[i - 1] + self._sizes[i - 1] if i else -1
        after_start = self._offsets[i] if i < len(self._offsets) else self.nbytes + 1
        if before_end > start or after_start < end or end > self.nbytes:
            raise ValueError(f"{block} is not handed out")
        self.used_nbytes -= block.nbytes
        if before_end == start:
            i -= 1
            self._sizes[i] += block.nbytes
        else:
            self._offsets.insert(i, start)
            self._sizes.insert(i, block.nbytes)
        if after_start == end:
            self._sizes[i] += self._sizes[i + 1]
            del self._offsets[i + 1], self._sizes[i + 1]
