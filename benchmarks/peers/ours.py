"""Batchyard at the workloads, by its own SDK from one process, as a user has it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np

from batchyard.benchmarks.peers.contestant import Contestant
from batchyard.benchmarks.peers.formats import Array
from batchyard.benchmarks.peers.workloads import Workload
from batchyard.benchmarks.timing import awaits_per_s, calls_per_s, futures_per_s, p50_us
from batchyard.clients import AsyncClient, Client

# Of what is under way, one in so many is taken and submitted anew together.
_STEPS = 4


def contestants(endpoint: str, workload: Workload) -> list[Contestant]:
    """The SDK's calls that fit the workload; the first is held against every peer."""
    if workload.is_latency:
        return [Contestant("predict", "Client.predict", partial(_predict, endpoint, workload))]
    found = [Contestant("submit", "Client.submit", partial(_submit, endpoint, workload, False))]
    if workload.is_small:
        found += [
            Contestant("async", "AsyncClient", partial(_await, endpoint, workload)),
            Contestant("predict_many", "Client.predict_many", partial(_many, endpoint, workload)),
        ]
    if workload.is_large:
        title = "Client.submit, built in place"
        found.append(
            Contestant("submit_in_place", title, partial(_submit, endpoint, workload, True))
        )
    return found


def outputs(endpoint: str, workload: Workload) -> list[Array]:
    """The output of each of the workload's rows, flat: what peers must answer too."""
    with Client(endpoint) as client:
        answers = client.predict_many(workload.model, workload.rows())
        # Copies: they are kept longer than the client's memory.
        return [np.array(answer["y"], np.float32).ravel() for answer in answers]


def _predict(endpoint: str, workload: Workload, seconds: float) -> float:
    (row,) = workload.rows()
    with Client(endpoint) as client:
        return p50_us(lambda: client.predict(workload.model, row), seconds)


def _submit(endpoint: str, workload: Workload, in_place: bool, seconds: float) -> float:
    return max(
        _submitted(endpoint, workload, count, in_place, seconds) for count in workload.in_flight
    )


def _submitted(
    endpoint: str, workload: Workload, in_flight: int, in_place: bool, seconds: float
) -> float:
    with Client(endpoint) as client:
        rows = workload.rows()[:in_flight]
        if in_place:
            rows = [_in_place(client, row) for row in rows]
        following = cycle(rows)
        return futures_per_s(
            lambda: client.submit(workload.model, next(following)),
            in_flight,
            in_flight // _STEPS,
            seconds,
        )


def _in_place(client: Client, row: Array) -> Array:
    """The row in memory that is shared with the server, where a caller may build it at once."""
    copy: Array = client.empty(row.shape, np.float32)
    copy[:] = row
    return copy


def _await(endpoint: str, workload: Workload, seconds: float) -> float:
    return asyncio.run(_awaited(endpoint, workload, seconds))


async def _awaited(endpoint: str, workload: Workload, seconds: float) -> float:
    rows = cycle(workload.rows())
    async with AsyncClient(endpoint) as client:

        async def call() -> Any:
            return await client.predict(workload.model, next(rows))

        await call()
        return max([await awaits_per_s(call, count, seconds) for count in workload.in_flight])


def _many(endpoint: str, workload: Workload, seconds: float) -> float:
    """All that may be under way is one call, the next waits for it."""
    rows: Sequence[Array] = workload.rows()
    with Client(endpoint) as client:
        calls = calls_per_s(lambda: client.predict_many(workload.model, rows), seconds)
    return calls * len(rows)
