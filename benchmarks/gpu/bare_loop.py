"""The references: a framework in a loop, in one process without a server, asked over a pipe.

``python -m batchyard.benchmarks.gpu.bare_loop FRAMEWORK CUDA_VISIBLE_DEVICES FRACTION`` is a
``benchmarks.child``. It has the card, and the share of its memory, that the worker has which it is
held against; it keeps still while that is measured.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from batchyard.benchmarks.gpu.guarded import answer_guarded
from batchyard.benchmarks.timing import calls_per_s, p50_us
from batchyard.wire.control import die_with_parent

Array = np.ndarray[Any, Any]
# So many calls tell how long one takes, and are enqueued to see what that costs the host: fewer
# than a card's queue has room for.
_PILOT_CALLS = 4
_PILOTS = 5


class Loop(Protocol):
    """A network on its device. Tensors there are the framework's own."""

    def put(self, host: Array) -> Any:
        """A tensor on the device with these values."""

    def call(self, x: Any) -> Any:
        """The network's answer, enqueued."""

    def fetch(self, y: Any) -> Array:
        """An answer on the host."""

    def synchronize(self, y: Any) -> None:
        """Waits for the last answer, and so for all."""


class Bare:
    """What the parent's questions are put to."""

    def __init__(self, make: Callable[..., Loop]) -> None:
        self._make = make
        self._loops: dict[str, tuple[Loop, Array]] = {}

    def load(self, key: str, shape: list[int], **how: Any) -> None:
        """Makes a network that is called with float32 rows of this shape, and runs it once."""
        batch = np.random.default_rng(0).random(shape, np.float32)
        loop = self._make(**how)
        self._loops[key] = loop, batch
        for rows in (batch, batch[:1]):
            loop.fetch(loop.call(loop.put(rows)))

    def first_answer(self, key: str) -> list[float]:
        """Of the first row: what a server is to answer too."""
        loop, batch = self._loops[key]
        numbers: list[float] = loop.fetch(loop.call(loop.put(batch)))[0].tolist()
        return numbers

    def resident(self, key: str, seconds: float) -> float:
        """Rows a second with the inputs on the device: all calls enqueued, then one wait."""
        loop, batch = self._loops[key]
        x = loop.put(batch)
        count = max(round(seconds / _run(loop, x, _PILOT_CALLS)[1]), 2)
        return len(batch) / _run(loop, x, count)[1]

    def launch(self, key: str) -> dict[str, float]:
        """What a call takes the host, and what it takes until it is done, in microseconds."""
        loop, batch = self._loops[key]
        x = loop.put(batch)
        _run(loop, x, _PILOT_CALLS)
        pilots = [_run(loop, x, _PILOT_CALLS) for _ in range(_PILOTS)]
        return {"host": 1e6 * min(p[0] for p in pilots), "whole": 1e6 * min(p[1] for p in pilots)}

    def host_to_host(self, key: str, seconds: float) -> float:
        """Rows a second when each batch comes from the host and its answer is waited for there."""
        loop, batch = self._loops[key]
        calls = calls_per_s(lambda: loop.fetch(loop.call(loop.put(batch))), seconds)
        return calls * len(batch)

    def p50(self, key: str, seconds: float) -> float:
        """The median of a call with one row, from the host to the host, in microseconds."""
        loop, batch = self._loops[key]
        row = batch[:1]
        return p50_us(lambda: loop.fetch(loop.call(loop.put(row))), seconds)

    def batch_s(self, key: str, rows: int) -> float:
        """What a batch of so many rows takes that is on the device, at best of a few."""
        loop, batch = self._loops[key]
        x = loop.put(np.ascontiguousarray(np.resize(batch, (rows, *batch.shape[1:]))))
        # The first compiles, or finds the fastest algorithm.
        return min([_run(loop, x, 1)[1] for _ in range(_PILOTS + 1)][1:])


def _run(loop: Loop, x: Any, calls: int) -> tuple[float, float]:
    """Seconds a call: until it was enqueued, and until it was done."""
    started = time.perf_counter()
    for _ in range(calls):
        y = loop.call(x)
    enqueued = time.perf_counter()
    loop.synchronize(y)
    done = time.perf_counter()
    return (enqueued - started) / calls, (done - started) / calls


def main(framework: str, visible: str, fraction: float) -> None:
    """Answers until the pipe ends."""
    os.environ["CUDA_VISIBLE_DEVICES"] = visible
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    # JAX reads it when it first uses the card.
    os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] = str(fraction)
    try:
        module = importlib.import_module(f"batchyard.benchmarks.gpu.models.{framework}_networks")
    except ImportError as error:
        sys.exit(f"{framework} cannot be imported: {error}")
    module.limit_memory(fraction)
    bare = Bare(getattr(module, f"{framework.capitalize()}Loop"))
    commands = ("load", "first_answer", "resident", "launch", "host_to_host", "p50", "batch_s")
    asked = {name: getattr(bare, name) for name in commands}
    answer_guarded({"versions": module.versions, **asked})


if __name__ == "__main__":
    die_with_parent(os.getppid())
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
