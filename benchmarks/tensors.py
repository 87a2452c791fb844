"""Large tensors: what it costs to bring them to a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np

from batchyard.benchmarks.bare import BareTensorFlow
from batchyard.benchmarks.failures import BenchmarkFailed
from batchyard.benchmarks.machine import describe
from batchyard.benchmarks.memcpy import BATCH, IMAGE_NBYTES, IMAGE_SHAPE, Memcpy
from batchyard.benchmarks.models import exported
from batchyard.benchmarks.results import Figure, Results, run_rounds
from batchyard.benchmarks.served import Model, one_thread, serve
from batchyard.benchmarks.timing import futures_per_s, p50_us
from batchyard.clients import Client

_IN_FLIGHT = BATCH
_BATCHING = {"max_batch_size": BATCH, "batch_timeout_micros": 1000}
_AT_ONCE = {**_BATCHING, "batch_timeout_micros": 0}
# Floats in each of the rows of a request that fills its batch: 1 KB and 10 MB in all.
SHORT, LONG = 16, 160 * 1024
_ONE_VALUE = "batchyard.benchmarks.callables:one_value"
CALLABLES = [
    Model(
        "one_value",
        _ONE_VALUE,
        _BATCHING,
        inputs={"x": ("float32", (-1, *IMAGE_SHAPE))},
        outputs={"y": ("float32", (-1,))},
    ),
    Model(
        "alone",
        _ONE_VALUE,
        _AT_ONCE,
        inputs={"x": ("float32", (-1, -1))},
        outputs={"y": ("float32", (-1,))},
    ),
]
_FIGURES = [
    Figure("memcpy", f"memcpy of {BATCH} images, one thread", "GB/s"),
    Figure("submit", "one value read an image, ordinary arrays", "GB/s", "memcpy", 0.6),
    Figure("in_place", "one value read an image, built in place", "GB/s", "memcpy", 0.6),
    Figure("batches", f"the same, {BATCH} a request, ordinary arrays", "GB/s", "memcpy", 0.6),
    Figure("batches_in_place", f"the same, {BATCH} a request, in place", "GB/s", "memcpy", 0.6),
    Figure("bare_mean", f"bare TensorFlow mean, batch {BATCH}", "images/s"),
    Figure("mean", "TensorFlow mean, ordinary arrays", "images/s", "bare_mean", 0.85),
    Figure("mean_in_place", "TensorFlow mean, built in place", "images/s", "bare_mean", 0.85),
    Figure("p50_1kb", "Client.predict of 1 KB, unloaded p50", "µs", lower_is_better=True),
    Figure(
        "p50_10mb",
        "Client.predict of 10 MB, unloaded p50",
        "µs",
        "p50_1kb",
        1.3,
        lower_is_better=True,
    ),
]
Array = np.ndarray[Any, np.dtype[np.float32]]
# Makes an input that holds nothing yet.
Make = Callable[[Client, Sequence[int]], Array]


def run(seconds: float, repeat: int) -> Results:
    """Measures each for ``seconds`` (latencies for half of it), ``repeat`` times, in turn."""
    with BareTensorFlow() as bare, exported("mean") as folders:
        bare.load("mean", folders["mean"], [BATCH, *IMAGE_SHAPE])
        models = [*CALLABLES, Model("mean", str(folders["mean"]), _BATCHING)]
        with serve(models, **one_thread()) as (_, ipc):
            memcpy = Memcpy()
            measured = run_rounds(
                {
                    "memcpy": lambda: {"memcpy": memcpy.gb_per_s(seconds)},
                    "submit": lambda: {"submit": _gb_per_s(ipc, ordinary, 1, seconds)},
                    "in place": lambda: {"in_place": _gb_per_s(ipc, in_place, 1, seconds)},
                    "batches": lambda: {"batches": _gb_per_s(ipc, ordinary, BATCH, seconds)},
                    "batches in place": lambda: {
                        "batches_in_place": _gb_per_s(ipc, in_place, BATCH, seconds)
                    },
                    "bare mean": lambda: {"bare_mean": bare.rows_per_s("mean", seconds)},
                    "mean": lambda: {"mean": images_per_s(ipc, "mean", ordinary, 1, seconds)},
                    "mean in place": lambda: {
                        "mean_in_place": images_per_s(ipc, "mean", in_place, 1, seconds)
                    },
                    "p50 of 1 KB": lambda: {"p50_1kb": p50_us_of(ipc, SHORT, seconds / 2)},
                    "p50 of 10 MB": lambda: {"p50_10mb": p50_us_of(ipc, LONG, seconds / 2)},
                },
                repeat,
            )
    settings = {
        "seconds": seconds,
        "repeat": repeat,
        "image_nbytes": IMAGE_NBYTES,
        "in_flight": _IN_FLIGHT,
        **_BATCHING,
        "batch_timeout_micros for latency": _AT_ONCE["batch_timeout_micros"],
        **one_thread(),
    }
    return Results("tensors", describe(), settings, _FIGURES, measured)


def ordinary(client: Client, shape: Sequence[int]) -> Array:
    """In memory of the process's own, as most callers have their arrays."""
    return np.empty(shape, np.float32)


def in_place(client: Client, shape: Sequence[int]) -> Array:
    """In the memory that client and server share, so that sending it copies nothing."""
    array: Array = client.empty(shape, np.float32)
    return array


def _gb_per_s(endpoint: str, make: Make, rows: int, seconds: float) -> float:
    return images_per_s(endpoint, "one_value", make, rows, seconds) * IMAGE_NBYTES / 1e9


def images_per_s(endpoint: str, model: str, make: Make, rows: int, seconds: float) -> float:
    """Requests of ``rows`` images, of which each has memory of its own while it is under way.

    As many as fill a batch are under way, or two that fill a batch each.
    """
    in_flight = max(_IN_FLIGHT // rows, 2)
    with Client(endpoint) as client:
        requests = [make(client, (rows, *IMAGE_SHAPE)) for _ in range(in_flight)]
        for i, images in enumerate(requests):
            images[:] = i
        answers = [client.submit(model, images) for images in requests]
        if [float(answer.result()["y"][-1]) for answer in answers] != list(range(in_flight)):
            raise BenchmarkFailed(f"model {model!r} answers wrongly")
        turns = cycle(requests)
        at_once = max(BATCH // rows, 1)
        rate = futures_per_s(lambda: client.submit(model, next(turns)), in_flight, at_once, seconds)
        return rate * rows


def p50_us_of(endpoint: str, floats: int, seconds: float) -> float:
    """The median duration of one request at a time, whose rows have so many floats each."""
    with Client(endpoint) as client:
        rows = in_place(client, (BATCH, floats))
        rows[:] = 1
        return p50_us(partial(client.predict, "alone", rows), seconds)
