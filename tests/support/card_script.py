"""Batches on this machine's card, by one framework: ``python card_script.py torch|jax|cupy``.

For machines that have one; ``simulated`` is how the tests see that the script itself works. Prints
what it did, and ends with an AssertionError where an answer is wrong.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from batchyard.pool.gpu.card import Card, CardBatch, OutputSpec

_ROWS = 4096
_BLOCK = 1 << 20
_BATCHES = 50
Array = np.ndarray[Any, Any]
# Twice an input, computed on the card.
Double = Callable[[Any], Any]


def torch_double() -> Double:
    """PyTorch, on its default stream and, in turns, on another."""
    import torch

    other = torch.cuda.Stream()
    streams = [torch.cuda.default_stream(), other]

    def double(x: Any) -> Any:
        streams.reverse()
        with torch.cuda.stream(streams[0]):
            y = torch.from_dlpack(x) * 2
        # As PyTorch asks of whoever uses streams: others use the current one.
        torch.cuda.current_stream().wait_stream(streams[0])
        y.record_stream(torch.cuda.current_stream())
        return y

    return double


def jax_double() -> Double:
    """A jitted function of JAX's."""
    import jax

    jitted = jax.jit(lambda x: x * 2)
    return lambda x: jitted(jax.dlpack.from_dlpack(x))


def cupy_double() -> Double:
    """CuPy, on its current stream."""
    import cupy

    return lambda x: cupy.from_dlpack(x) * 2


def simulated_double() -> Double:
    """A kernel of the simulated card's."""
    from support.simulated_driver import Framework

    framework = Framework()

    def double(x: Any) -> Any:
        source = framework.from_dlpack(x)
        target = framework.empty(source.array.shape, source.array.dtype)

        def kernel() -> None:
            target.array[...] = 2 * source.array

        framework.launch(kernel)
        return target

    return double


def main(framework: str) -> None:
    """Two batches at a time are under way, as in a worker."""
    arena = memoryview(mmap.mmap(-1, 8 * _BLOCK))
    card = Card.open(arena)
    double: Double = globals()[f"{framework}_double"]()
    print(f"{framework} on {card.name}; arena page-locked: {card.why_not_page_locked or 'yes'}")
    before: tuple[CardBatch, int] | None = None
    kept: list[Any] = []
    for i in range(_BATCHES):
        batch = _begin(card, arena, i)
        x, ids = batch.arrays["x"], batch.arrays["ids"]
        if i == 0:
            kept.append(x)
        outputs = [("y", double(x)), ("ids", double(ids)), ("host", np.array([i]))]
        batch.bring(outputs, lambda specs, i=i: _room(arena, i, specs))  # type: ignore[misc]
        del x, ids, outputs
        if before is not None:
            _check(*before)
        before = batch, i
    assert before is not None
    _check(*before)
    # What was kept of the first batch was not written over.
    batch = _begin(card, arena, 1)
    batch.bring([("kept", double(kept.pop()))], lambda specs: _room(arena, 1, specs))
    [(_, y)] = batch.wait()
    np.testing.assert_array_equal(y, 2 * np.arange(_ROWS, dtype=np.float32))
    assert not card.is_lost
    print(f"{_BATCHES} batches are right; buffers: {card.buffer_nbytes} bytes")


def _begin(card: Card, arena: memoryview, i: int) -> CardBatch:
    offset = i % 2 * 2 * _BLOCK
    x = np.ndarray((_ROWS,), np.float32, arena, offset)
    ids = np.ndarray((3, 1), np.int32, arena, offset + x.nbytes)
    x[...] = np.arange(_ROWS, dtype=np.float32) + i
    ids[...] = i
    return card.begin({"x": x, "ids": ids})


def _room(arena: memoryview, i: int, specs: Sequence[OutputSpec]) -> list[Array]:
    offset, rooms = (4 + i % 2 * 2) * _BLOCK, []
    for _, _, _, nbytes in specs:
        rooms.append(np.ndarray((nbytes,), np.uint8, arena, offset))
        offset += (nbytes + 63) // 64 * 64
    return rooms


def _check(batch: CardBatch, i: int) -> None:
    outputs = dict(batch.wait())
    np.testing.assert_array_equal(outputs["y"], 2 * (np.arange(_ROWS, dtype=np.float32) + i))
    np.testing.assert_array_equal(outputs["ids"], np.full((3, 1), 2 * i))
    assert outputs["host"].tolist() == [i]
    assert batch.seconds > 0


if __name__ == "__main__":
    main(sys.argv[1])
