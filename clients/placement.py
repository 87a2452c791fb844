"""Which tensors of a call travel in the region, and where they lie there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from batchyard.clients.inputs import Array, Route
from batchyard.clients.region import ClientRegion
from batchyard.wire.dtypes import NOT_IN_REGIONS
from batchyard.wire.tensors import LARGE_NBYTES


@dataclass(slots=True)
class Placement:
    """Where tensors of a call lie in a region.

    ``offsets`` has one for each input, None for those that travel as frames; ``copied``: one of
    them was copied there. ``reply`` is memory, uint8, for the outputs to be written to, which
    begins at ``reply_offset``.
    """

    region: ClientRegion
    offsets: list[int | None]
    copied: bool
    reply: Array | None
    reply_offset: int

    @property
    def pattern(self) -> tuple[bool, ...]:
        """Calls of the same pattern may share a message."""
        return (*(offset is not None for offset in self.offsets), self.reply is not None)


def place(
    region: ClientRegion | None, route: Route, arrays: list[Array], rows: int
) -> Placement | None:
    """Sees to it that large arrays lie in the region, as far as there is room.

    Puts copies in the place of those in ``arrays`` that lie elsewhere. None when nothing lies
    there: then all of it travels as frames.
    """
    if region is None:
        return None
    replies = route.has_large_reply(rows)
    if not replies:
        for array in arrays:
            if array.nbytes >= LARGE_NBYTES:
                break
        else:
            return None
    offsets: list[int | None] = [None] * len(arrays)
    copied = False
    dtypes = route.input_dtypes(arrays)
    for i, array in enumerate(arrays):
        if array.nbytes < LARGE_NBYTES or dtypes[i] in NOT_IN_REGIONS:
            continue
        offsets[i] = region.offset_of(array)
        if offsets[i] is None:
            copy = region.empty(array.shape, array.dtype)
            if copy is None:
                # A message with a large frame does not fit into the local socket.
                return None
            np.copyto(copy, array)
            copied = True
            arrays[i] = copy
            offsets[i] = region.offset_of(copy)
    reply = None
    if replies:
        reply = region.empty((route.reply_nbytes(rows),), np.dtype(np.uint8))
    if reply is None and offsets.count(None) == len(offsets):
        return None
    return Placement(region, offsets, copied, reply, _offset(region, reply))


def _offset(region: ClientRegion, reply: Array | None) -> int:
    return 0 if reply is None else region.offset_of(reply) or 0
