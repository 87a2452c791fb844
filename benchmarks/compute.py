"""A real network: images of one row each, beside the bare TensorFlow loop at the same batch."""

from __future__ import annotations

from itertools import cycle

import numpy as np

from batchyard.benchmarks.bare import BareTensorFlow
from batchyard.benchmarks.failures import BenchmarkFailed
from batchyard.benchmarks.machine import describe
from batchyard.benchmarks.models import exported
from batchyard.benchmarks.results import Figure, Results, run_rounds
from batchyard.benchmarks.served import Model, one_thread, serve
from batchyard.benchmarks.timing import futures_per_s
from batchyard.clients import Client

MODEL = "mobilenet"
BATCH = 32
IMAGE_SHAPE = (96, 96, 3)
# One batch runs, one is ready, and the next two are under way.
IN_FLIGHT = 4 * BATCH
BATCHING = {"max_batch_size": BATCH, "batch_timeout_micros": 10_000}
_FIGURES = [
    Figure("bare", f"bare TensorFlow loop, batch {BATCH}", "images/s"),
    Figure(
        "submit", f"Client.submit, one image each, {IN_FLIGHT} in flight", "images/s", "bare", 0.97
    ),
]


def run(seconds: float, repeat: int) -> Results:
    """Measures each for ``seconds``, ``repeat`` times, in turn."""
    with BareTensorFlow() as bare, exported(MODEL) as folders:
        bare.load(MODEL, folders[MODEL], [BATCH, *IMAGE_SHAPE])
        model = Model(MODEL, str(folders[MODEL]), BATCHING)
        with (
            serve([model], **one_thread()) as (_, ipc),
            Client(ipc) as client,
        ):
            measured = run_rounds(
                {
                    "bare": lambda: {"bare": bare.rows_per_s(MODEL, seconds)},
                    "submit": lambda: {"submit": _images_per_s(client, seconds)},
                },
                repeat,
            )
    settings = {
        "seconds": seconds,
        "repeat": repeat,
        "model": "MobileNetV2 96×96, random weights",
        "in_flight": IN_FLIGHT,
        **BATCHING,
        **one_thread(),
    }
    return Results("compute", describe(), settings, _FIGURES, measured)


def _images_per_s(client: Client, seconds: float) -> float:
    images = np.random.default_rng(0).random((IN_FLIGHT, 1, *IMAGE_SHAPE), np.float32)
    # The network's last layer is a softmax.
    if not np.isclose(client.predict(MODEL, images[0])["y"].sum(), 1):
        raise BenchmarkFailed("the network answers wrongly")
    turns = cycle(images)
    # A step is a batch: the clock starts and stops where batches end.
    return futures_per_s(lambda: client.submit(MODEL, next(turns)), IN_FLIGHT, BATCH, seconds)
