"""One-row requests from one client process, beside a raw pyzmq echo of the same frames."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from batchyard.benchmarks import raw
from batchyard.benchmarks.bare import BareTensorFlow
from batchyard.benchmarks.echo import echo_server
from batchyard.benchmarks.failures import BenchmarkFailed
from batchyard.benchmarks.machine import describe
from batchyard.benchmarks.models import exported
from batchyard.benchmarks.results import Figure, Results, run_rounds
from batchyard.benchmarks.served import Model, one_thread, serve
from batchyard.benchmarks.timing import awaits_per_s, calls_per_s, futures_per_s, p50_us
from batchyard.clients import AsyncClient, Client

MODEL = "half_plus_two"
# The same SavedModel without waiting for company: what latency is measured with.
AT_ONCE = "half_plus_two_at_once"
BATCHING = {"max_batch_size": 64, "batch_timeout_micros": 1000}
_IN_FLIGHT = raw.IN_FLIGHT
# Futures that the caller of submit takes together.
_STEP = 64
_ROW = np.ones(1, np.float32)
_FRAMES = raw.one_row_requests(MODEL, 1)[0]
_Measurements = dict[str, Callable[[], Mapping[str, float]]]


def run(seconds: float, repeat: int) -> Results:
    """Measures each for ``seconds`` (latencies for half of it), ``repeat`` times, in turn."""
    with (
        BareTensorFlow() as bare,
        exported(MODEL) as folders,
        echo_server() as echoes,
    ):
        path = str(folders[MODEL])
        models = [
            Model(MODEL, path, BATCHING),
            Model(AT_ONCE, path, {**BATCHING, "batch_timeout_micros": 0}),
        ]
        bare.load(MODEL, folders[MODEL], [1])
        with serve(models, **one_thread()) as endpoints:
            measurements: _Measurements = {
                "bare call": lambda: {"bare_p50": bare.p50_us(MODEL, seconds / 2)}
            }
            for kind, echo, endpoint in zip(("tcp", "ipc"), echoes, endpoints, strict=True):
                measurements |= _measurements(kind, echo, endpoint, seconds)
            measured = run_rounds(measurements, repeat)
    settings = {
        "seconds": seconds,
        "repeat": repeat,
        "in_flight": _IN_FLIGHT,
        **BATCHING,
        "batch_timeout_micros for latency": 0,
        **one_thread(),
    }
    return Results("small", describe(), settings, [*_figures()], measured)


def _measurements(kind: str, echo: str, endpoint: str, seconds: float) -> _Measurements:
    """Those over one kind of endpoint, which ends their keys."""
    rates: dict[str, Callable[[], Mapping[str, float]]] = {
        "echo": lambda: {"echo": raw.echo_per_s(echo, _FRAMES, seconds)},
        "submit": lambda: _submit(endpoint, seconds),
        "predict_many": lambda: _predict_many(endpoint, seconds),
        "async": lambda: asyncio.run(_async(endpoint, seconds)),
        "one_by_one": lambda: {"one_by_one": raw.requests_per_s(endpoint, MODEL, seconds)},
        "echo p50": lambda: {"echo_p50": raw.echo_p50_us(echo, _FRAMES, seconds / 2)},
        "predict p50": lambda: {"predict_p50": _predict_p50_us(endpoint, seconds / 2)},
    }

    def ending(measure: Callable[[], Mapping[str, float]]) -> Mapping[str, float]:
        return {f"{key}_{kind}": value for key, value in measure().items()}

    return {
        f"{name}, {kind}": lambda measure=measure: ending(measure)  # type: ignore[misc]
        for name, measure in rates.items()
    }


def _figures() -> Iterator[Figure]:
    loaded = f"{_IN_FLIGHT} in flight"
    for kind in ("tcp", "ipc"):
        echo = f"echo_{kind}"
        yield Figure(echo, f"raw pyzmq echo, {kind}, {loaded}", "requests/s")
        for key, title, goal in (
            ("submit", f"Client.submit, {kind}, {loaded}", 2.0),
            ("predict_many", f"Client.predict_many, {kind}, {_IN_FLIGHT} a call", 5.0),
            ("async", f"AsyncClient, {kind}, {loaded}", 1.0),
            ("one_by_one", f"a message for every request, {kind}, {loaded}", 0.5),
        ):
            yield Figure(f"{key}_{kind}", title, "requests/s", echo, goal)
        for key, title in (("submit", "submit"), ("async", "AsyncClient")):
            yield Figure(
                f"broker_cpu_{key}_{kind}",
                f"broker's CPU a request, by {title}, {kind}",
                "µs",
                goal=2.0,
                lower_is_better=True,
            )
    yield Figure("bare_p50", "bare TensorFlow call, p50", "µs", lower_is_better=True)
    for kind in ("tcp", "ipc"):
        echo = f"echo_p50_{kind}"
        title = f"Client.predict, {kind}, unloaded p50"
        yield Figure(echo, f"raw pyzmq echo, {kind}, unloaded p50", "µs", lower_is_better=True)
        yield Figure(f"predict_p50_{kind}", title, "µs", "bare_p50", 1.6, lower_is_better=True)
        yield Figure(f"predict_p50_{kind}", title, "µs", echo, lower_is_better=True)


def _submit(endpoint: str, seconds: float) -> dict[str, float]:
    with Client(endpoint) as client:
        _check(client.predict(MODEL, _ROW))
        before = client.stats()
        rate = futures_per_s(lambda: client.submit(MODEL, _ROW), _IN_FLIGHT, _STEP, seconds)
        return {"submit": rate, "broker_cpu_submit": _broker_cpu_us(before, client.stats())}


def _predict_many(endpoint: str, seconds: float) -> dict[str, float]:
    rows = [_ROW] * _IN_FLIGHT
    with Client(endpoint) as client:
        for answer in client.predict_many(MODEL, rows):
            _check(answer)
        calls = calls_per_s(lambda: client.predict_many(MODEL, rows), seconds)
    return {"predict_many": calls * len(rows)}


async def _async(endpoint: str, seconds: float) -> dict[str, float]:
    async with AsyncClient(endpoint) as client:
        _check(await client.predict(MODEL, _ROW))
        before = await client.stats()
        rate = await awaits_per_s(lambda: client.predict(MODEL, _ROW), _IN_FLIGHT, seconds)
        return {"async": rate, "broker_cpu_async": _broker_cpu_us(before, await client.stats())}


def _check(answer: Mapping[str, Any]) -> None:
    if answer["y"].tolist() != [2.5]:
        raise BenchmarkFailed(f"half of 1 plus two is not {answer['y']}")


def _broker_cpu_us(before: dict[str, Any], after: dict[str, Any]) -> float:
    """What the broker's process took of its processors for each request, all it did counted."""
    requests = _requests(after) - _requests(before)
    return float(after["broker"]["cpu_s"] - before["broker"]["cpu_s"]) / requests * 1e6


def _requests(stats: dict[str, Any]) -> int:
    return sum(model["requests"] for model in stats["models"])


def _predict_p50_us(endpoint: str, seconds: float) -> float:
    with Client(endpoint) as client:
        _check(client.predict(AT_ONCE, _ROW))
        return p50_us(lambda: client.predict(AT_ONCE, _ROW), seconds)
