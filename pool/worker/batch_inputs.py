"""A batch's inputs: rows out of clients' regions put side by side, and views of them as arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from batchyard.pool.runtimes.base import Array
from batchyard.pool.worker.intake import Assignment
from batchyard.wire import dtypes, work
from batchyard.wire.errors import ResourceExhausted
from batchyard.wire.tensors import decode_strings


def gather(assignment: Assignment) -> None:
    """Copies rows from clients' regions into the block, side by side."""
    execute = assignment.execute
    needed = {copy[0] for copy in execute.copies} | {reply[0] for reply in execute.replies}
    needed.update(place[3] for place in execute.inputs)
    if len(needed - {work.ARENA}) > len(assignment.regions):
        raise ResourceExhausted("the worker could not map a client's shared memory")
    for region, offset, target, nbytes in execute.copies:
        # Not by memoryview: numpy lets other threads run meanwhile.
        np.copyto(
            assignment.arena[target : target + nbytes],
            assignment.regions[region][offset : offset + nbytes],
        )


def views(assignment: Assignment) -> dict[str, Array]:
    """The inputs by name, where they lie; read-only where that is a client's region."""
    execute = assignment.execute
    inputs = {
        name: _view(assignment.memory(memory), dtype, shape, offset, nbytes)
        for name, dtype, shape, memory, offset, nbytes in execute.inputs
    }
    for name, _, _, memory, _, _ in execute.inputs:
        if memory != work.ARENA:
            # It is the client's own array.
            inputs[name].flags.writeable = False
    return inputs


def _view(base: Array, dtype: str, shape: Sequence[int], offset: int, nbytes: int) -> Array:
    if dtype == dtypes.STRING:
        count = int(np.prod(shape, dtype=np.int64))
        return decode_strings(base[offset : offset + nbytes].data, count).reshape(shape)
    return np.ndarray(tuple(shape), dtypes.to_numpy(dtype), base, offset)
