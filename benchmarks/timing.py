"""How often and how fast a call is."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any


def p50_us(call: Callable[[], object], seconds: float) -> float:
    """The median of a call's duration in microseconds, one call after the other."""
    call()
    times: list[float] = []
    until = time.perf_counter() + seconds
    while True:
        started = time.perf_counter()
        call()
        ended = time.perf_counter()
        times.append(ended - started)
        if ended >= until:
            return statistics.median(times) * 1e6


def calls_per_s(call: Callable[[], object], seconds: float) -> float:
    """How many calls a second, one after the other."""
    call()
    count = 0
    started = time.perf_counter()
    while True:
        call()
        count += 1
        elapsed_s = time.perf_counter() - started
        if elapsed_s >= seconds:
            return count / elapsed_s


def futures_per_s(
    submit: Callable[[], Future[Any]], in_flight: int, at_once: int, seconds: float
) -> float:
    """How many submitted requests are answered a second while ``in_flight`` are under way.

    ``at_once`` are taken and submitted anew together; the clock starts and stops after such a
    step. Where it is a batch, a batch cut by the end of the measurement does not count.
    """
    futures = deque(submit() for _ in range(in_flight))
    count = -at_once
    started = 0.0
    while True:
        for _ in range(at_once):
            futures.popleft().result()
            futures.append(submit())
        now = time.perf_counter()
        count += at_once
        if count == 0:
            started = now
        elif now - started >= seconds:
            break
    for future in futures:
        future.result()
    return count / (now - started)


async def awaits_p50_us(call: Callable[[], Awaitable[object]], seconds: float) -> float:
    """The median of a call's duration in microseconds, one call after the other."""
    times: list[float] = []
    until = time.perf_counter() + seconds
    while not times or time.perf_counter() < until:
        started = time.perf_counter()
        await call()
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e6


async def awaits_per_s(
    call: Callable[[], Awaitable[object]], in_flight: int, seconds: float
) -> float:
    """How many calls a second come back from ``in_flight`` coroutines that each wait for theirs."""
    answered = 0
    started = time.perf_counter()
    until = started + seconds

    async def caller() -> None:
        nonlocal answered
        while time.perf_counter() < until:
            await call()
            answered += 1

    await asyncio.gather(*(caller() for _ in range(in_flight)))
    return answered / (time.perf_counter() - started)
