"""Where a batch's inputs lie in a buffer on the card, so that few transfers bring them there. Pure.

The broker lays a batch's inputs out side by side in its block, each at a multiple of 64 bytes.
They keep those distances on the card: then all are one transfer. 64 bytes is what TensorFlow asks
for of tensors that come by DLPack (EIGEN_MAX_ALIGN_BYTES; it aborts the process otherwise); XLA
relies on 16 (kEntryParameterAlignBytes), as do vector loads and Hopper's tensor copies. What lies
apart begins at a multiple of 256, as CUDA's own allocations do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from batchyard.wire.arena import ALIGNMENT, align

_APART = 256


class Transfer(NamedTuple):
    """``nbytes`` bytes from an address of the host to an offset in the buffer."""

    address: int
    offset: int
    nbytes: int


class Layout(NamedTuple):
    """The offset of each input, the transfers, and the bytes that the buffer needs."""

    offsets: list[int]
    transfers: list[Transfer]
    nbytes: int


def lay_out(places: Sequence[tuple[int, int]], arena: range) -> Layout:
    """The layout for inputs at ``(address, nbytes)``.

    What lies between two inputs in the arena, which is ``arena``'s addresses, is the batch's too,
    and may travel with them. Elsewhere it may be anybody's, or nobody's.
    """
    offsets = [0] * len(places)
    transfers: list[Transfer] = []
    total = 0
    for i in sorted(range(len(places)), key=places.__getitem__):
        address, nbytes = places[i]
        if not nbytes:
            continue
        last = transfers[-1] if transfers else None
        if last is not None and _continues(last, address, nbytes, arena):
            offsets[i] = last.offset + address - last.address
            transfers[-1] = last._replace(nbytes=address + nbytes - last.address)
        else:
            offsets[i] = -(-total // _APART) * _APART
            transfers.append(Transfer(address, offsets[i], nbytes))
        total = offsets[i] + nbytes
    return Layout(offsets, transfers, total)


def _continues(last: Transfer, address: int, nbytes: int, arena: range) -> bool:
    if last.address % ALIGNMENT or address % ALIGNMENT:
        return False
    end = last.address + last.nbytes
    if address == end:
        return True
    in_arena = last.address >= arena.start and address + nbytes <= arena.stop
    return in_arena and address == align(end)
