"""Batches for a worker's card, and a block of the arena that they lie in."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from support.simulated_driver import Framework, Tensor

from batchyard.pool.gpu.card import Card, CardBatch, OutputSpec

ROWS = 1000


class Block:
    """Hands out a part of the arena, piece by piece."""

    def __init__(self, arena: memoryview, offset: int = 0) -> None:
        self._arena = arena
        self._offset = offset

    def array(self, values: Any) -> np.ndarray[Any, Any]:
        values = np.asarray(values)
        array = np.ndarray(values.shape, values.dtype, self._arena, self._offset)
        array[...] = values
        self._offset += (values.nbytes + 63) // 64 * 64
        return array

    def room(self, specs: Sequence[OutputSpec]) -> list[np.ndarray[Any, Any]]:
        return [self.array(np.zeros(nbytes, np.uint8)) for _, _, _, nbytes in specs]


def double(framework: Framework, x: Any, gate: threading.Event | None = None) -> Tensor:
    """A kernel that reads an input, after a gate was opened."""
    source = framework.from_dlpack(x)
    target = framework.empty(source.array.shape, source.array.dtype)

    def kernel() -> None:
        if gate is not None:
            assert gate.wait(10)
        target.array[...] = 2 * source.array

    framework.launch(kernel)
    return target


def begin(card: Card, block: Block, value: float = 1) -> CardBatch:
    return card.begin({"x": block.array(np.full(ROWS, value, np.float32))})
