"""Where a batch's outputs come from the card: straight to where the broker reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from batchyard.pool.gpu.card import OutputSpec
from batchyard.pool.runtimes.base import Array
from batchyard.pool.worker.intake import Assignment
from batchyard.pool.worker.outputs import (
    Output,
    OutputMemory,
    can_reply,
    describe,
    nowhere_else,
    reply,
)
from batchyard.wire import arena, dtypes, work


class Landing:
    """The place of one batch's outputs: its block, or a memfd when they do not fit.

    They are laid out as ``outputs.place`` does. What is in host memory is written at once: a
    function may use the arrays that it returned again.
    """

    def __init__(self, outputs: Sequence[tuple[str, Any]], assignment: Assignment) -> None:
        """``outputs`` are numpy arrays, and what lies on the card. Raises Internal."""
        self._assignment = assignment
        model = assignment.execute.model
        # None for what the card brings.
        self._in_host = [
            describe(name, output, model) if isinstance(output, np.ndarray) else None
            for name, output in outputs
        ]
        self._outputs: list[Output] = []
        self._offsets: list[int] = []
        self._memory: OutputMemory | None = None

    def room(self, specs: Sequence[OutputSpec]) -> list[Array]:
        """Bytes for what is on the card, in its order. Raises ResourceExhausted."""
        coming = iter(specs)
        for output in self._in_host:
            if output is None:
                name, dtype, shape, nbytes = next(coming)
                output = Output(name, dtype, shape, None, nbytes)
            self._outputs.append(output)
        self._memory = OutputMemory(self._outputs, self._assignment)
        memory, offset = self._memory.bytes, self._memory.offset
        given = []
        for output in self._outputs:
            self._offsets.append(offset)
            if output.dtype == dtypes.STRING:
                memory[offset : offset + output.nbytes] = output.data
            else:
                array = np.ndarray(output.shape, dtypes.to_numpy(output.dtype), memory, offset)
                if output.data is None:
                    given.append(np.ndarray(output.nbytes, np.uint8, memory, offset))
                elif output.nbytes:
                    array[...] = output.data
                output.data = array
            offset += arena.align(output.nbytes)
        return given

    def settle(self) -> None:
        """Writes what is in host memory, where nothing is on the card and so nobody asked for room.

        Called before the model may be called again.
        """
        if self._in_host and not self._outputs:
            self.room([])

    def place(self) -> tuple[list[work.PlacedOutput], list[int], bool]:
        """See ``outputs.place``. Called once all of them are there."""
        execute = self._assignment.execute
        replied = bool(execute.replies) and can_reply(self._outputs, execute)
        if replied and reply(self._outputs, self._assignment) == execute.rows:
            self.close()
            return nowhere_else(self._outputs), [], True
        placed: list[work.PlacedOutput] = [
            (o.name, o.dtype, o.shape, offset, o.nbytes)
            for o, offset in zip(self._outputs, self._offsets, strict=True)
        ]
        fds = [] if self._memory is None else self._memory.take_fds()
        self.close()
        return placed, fds, replied

    def close(self) -> None:
        """Gives back what only this has."""
        for output in self._outputs:
            output.data = None
        if self._memory is not None:
            self._memory.close()
            self._memory = None
