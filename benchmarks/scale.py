"""One broker and many simulated GPUs: which share of their time serves requests.

A GPU is a worker that sleeps 20 ms for a batch, whatever its size: more of them than the
machine has cores can be kept busy, and what the broker costs is all there is to see.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from batchyard.benchmarks.callables import BATCH_S
from batchyard.benchmarks.child import Child
from batchyard.benchmarks.machine import describe
from batchyard.benchmarks.results import Figure, Results, run_rounds
from batchyard.benchmarks.served import Model, serve

WORKERS = (1, 8, 32, 64)
GOAL = 0.9
_BATCH = 32
_COLUMNS = 4
_ROWS_A_REQUEST = 8
# Each worker runs one batch and prepares the next; two more wait, or are on their way.
_BATCHES_UNDER_WAY = 4
_BATCHING = {
    "max_batch_size": _BATCH,
    "batch_timeout_micros": 5000,
    # Requests come in bursts, as large as what the last burst of answers asks for.
    "max_enqueued_batches": 1000,
}
MODEL = Model(
    "simulated_gpu",
    "batchyard.benchmarks.callables:simulated_gpu",
    _BATCHING,
    inputs={"x": ("float32", (-1, _COLUMNS))},
    outputs={"y": ("float32", (-1, _COLUMNS))},
)


def run(seconds: float, repeat: int, workers: Sequence[int] = WORKERS) -> Results:
    """Measures each number of workers for ``seconds``, ``repeat`` times.

    One server after the other, not interleaved: a share needs no reference, and not every
    machine has the memory for all of them at once.
    """
    counts = sorted(set(workers))
    measured: dict[str, list[float]] = {}
    with Child("batchyard.benchmarks.scale_feeder") as feeder:
        for count in counts:
            with serve([MODEL], workers=count) as (_, ipc):

                def measure(count: int = count, endpoint: str = ipc) -> dict[str, float]:
                    return _measure(feeder, endpoint, count, seconds)

                measured |= run_rounds({f"{count} workers": measure}, repeat)
    settings = {
        "seconds": seconds,
        "repeat": repeat,
        "batch_s": BATCH_S,
        "rows a request": _ROWS_A_REQUEST,
        "requests in flight a worker": _in_flight(1),
        "client processes": 1,
        **_BATCHING,
    }
    return Results("scale", describe(), settings, [*_figures(counts)], measured)


def _figures(counts: Sequence[int]) -> Iterator[Figure]:
    for count in counts:
        gpus = f"{count} simulated GPU{'s' if count > 1 else ''}"
        yield Figure(f"share_{count}", f"useful share of {gpus}", "share", goal=GOAL)
        for key, who in (("broker", "the broker's"), ("client", "the client's")):
            title = f"{who} share of a core, {gpus}"
            yield Figure(f"{key}_cpu_{count}", title, "share", lower_is_better=True)


def _in_flight(workers: int) -> int:
    return workers * _BATCHES_UNDER_WAY * _BATCH // _ROWS_A_REQUEST


def _measure(feeder: Child, endpoint: str, workers: int, seconds: float) -> dict[str, float]:
    found: dict[str, Any] = feeder.ask(
        "feed",
        endpoint=endpoint,
        model=MODEL.name,
        shape=[_ROWS_A_REQUEST, _COLUMNS],
        in_flight=_in_flight(workers),
        seconds=seconds,
    )
    possible = found["seconds"] * workers * _BATCH / BATCH_S
    return {
        f"share_{workers}": found["requests"] * _ROWS_A_REQUEST / possible,
        f"broker_cpu_{workers}": found["broker_cpu_s"] / found["seconds"],
        f"client_cpu_{workers}": found["client_cpu_s"] / found["seconds"],
    }
