"""Keeps a server supplied with rows, from a process of its own that is asked over a pipe.

``python -m batchyard.benchmarks.gpu.feeder`` is a ``benchmarks.child``. Its rows lie in the memory
that it shares with the server, one batch after the other, each request in memory of its own while
it is under way: so the clients cost next to nothing, and nobody reads from a cache what he would
not find there.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import numpy as np

from batchyard.benchmarks.gpu.guarded import answer_guarded
from batchyard.benchmarks.timing import p50_us
from batchyard.clients import AsyncClient, Client
from batchyard.wire.control import die_with_parent

# Each caller has so many answers at least, however long a batch takes.
_LEAST = 3


class Feeder:
    """What the parent's questions are put to."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._client: AsyncClient | None = None
        self._batches: list[Any] = []

    def connect(self, endpoint: str, shape: list[int], batches: int) -> None:
        """Makes so many batches of this shape in the server's memory."""
        self._runner.run(self._connect(endpoint, shape, batches))

    async def _connect(self, endpoint: str, shape: list[int], batches: int) -> None:
        self._batches.clear()
        if self._client is not None:
            await self._client.close()
        self._endpoint = endpoint
        self._client = AsyncClient(endpoint)
        await self._client.connect()
        self._batches = [self._client.empty(shape, np.float32) for _ in range(batches)]
        values = np.random.default_rng(0).random(shape, np.float32)
        for batch in self._batches:
            batch[:] = values

    def first_answer(self, model: str) -> list[float]:
        """To the first row, in a batch."""
        with Client(self._endpoint) as client:
            numbers: list[float] = client.predict(model, self._batches[0])["y"][0].tolist()
            return numbers

    def p50(self, model: str, seconds: float) -> float:
        """The median of one request at a time of one row, in microseconds."""
        with Client(self._endpoint) as client:
            row = client.empty(self._batches[0][:1].shape, np.float32)
            row[:] = self._batches[0][:1]
            return p50_us(lambda: client.predict(model, row), seconds)

    def feed(self, model: str, rows: int, until: float) -> list[float]:
        """When each request of so many rows was answered; all batches are under way ``until``."""
        return self._runner.run(self._feed(model, rows, until))

    async def _feed(self, model: str, rows: int, until: float) -> list[float]:
        assert self._client is not None
        client, times = self._client, list[float]()
        now = time.monotonic

        async def caller(part: Any) -> None:
            answers = 0
            while answers < _LEAST or now() < until:
                await client.predict(model, part)
                times.append(now())
                answers += 1

        async with asyncio.TaskGroup() as callers:
            for batch in self._batches:
                for first in range(0, len(batch), rows):
                    callers.create_task(caller(batch[first : first + rows]))
        return times


if __name__ == "__main__":
    die_with_parent(os.getppid())
    feeder = Feeder()
    commands = (feeder.connect, feeder.first_answer, feeder.p50, feeder.feed)
    answer_guarded({command.__name__: command for command in commands})
