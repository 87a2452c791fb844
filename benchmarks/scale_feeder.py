"""Keeps a server supplied with requests, from a process of its own that is asked over a pipe.

``python -m batchyard.benchmarks.scale_feeder`` is a ``benchmarks.child``. It uses AsyncClient,
which takes the least of a processor that the server needs too.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np

from batchyard.benchmarks.child import answer
from batchyard.benchmarks.failures import BenchmarkFailed
from batchyard.clients import AsyncClient

# Before the clock starts, so that every worker is busy then: ten batches' time.
_WARM_UP_S = 0.2


def feed(
    endpoint: str, model: str, shape: list[int], in_flight: int, seconds: float
) -> dict[str, float]:
    """Keeps ``in_flight`` requests under way; those that were answered in about ``seconds``."""
    return asyncio.run(_feed(endpoint, model, shape, in_flight, seconds))


async def _feed(
    endpoint: str, model: str, shape: list[int], in_flight: int, seconds: float
) -> dict[str, float]:
    rows = np.ones(shape, np.float32)
    answered = 0
    stopping = False

    async with AsyncClient(endpoint) as client:

        async def caller() -> None:
            nonlocal answered
            while not stopping:
                await client.predict(model, rows)
                answered += 1

        answer = await client.predict(model, rows)
        if not np.array_equal(answer["y"], rows + 1):
            raise BenchmarkFailed(f"model {model!r} answers wrongly: {answer}")
        callers = asyncio.gather(*(caller() for _ in range(in_flight)))
        await asyncio.sleep(_WARM_UP_S)
        before, broker_before_s = _now(answered), await _broker_cpu_s(client)
        await asyncio.wait([callers], timeout=seconds)
        after, broker_after_s = _now(answered), await _broker_cpu_s(client)
        stopping = True
        # Raises what a caller met; they end on their own only then.
        await callers
    found = {name: after[name] - before[name] for name in before}
    return {**found, "broker_cpu_s": broker_after_s - broker_before_s}


def _now(answered: int) -> dict[str, float]:
    return {
        "requests": answered,
        "seconds": time.perf_counter(),
        "client_cpu_s": time.process_time(),
    }


async def _broker_cpu_s(client: AsyncClient) -> float:
    stats: dict[str, Any] = await client.stats()
    return float(stats["broker"]["cpu_s"])


if __name__ == "__main__":
    answer({"feed": feed})
