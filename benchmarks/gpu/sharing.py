"""Several workers on one card, whose shares of its memory come to the same together.

One server after the other: not every card has the memory for all of them at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from batchyard.benchmarks.gpu.feeding import Feeders
from batchyard.benchmarks.gpu.guarded import describe
from batchyard.benchmarks.gpu.options import SHARED_FRACTION, Options
from batchyard.benchmarks.gpu.server import serving
from batchyard.benchmarks.gpu.subjects import Group, served_model
from batchyard.benchmarks.gpu.tolerance import FAILURES, Found, run_tolerant_rounds
from batchyard.benchmarks.results import Figure


def figures(options: Options, group: Group) -> Iterator[Figure]:
    """The lines of a group: each number of workers beside the first."""
    first = _key(group, options.workers[0])
    for workers in options.workers:
        who = f"{workers} worker{'s' if workers > 1 else ''}"
        title = f"{group.title}, {group.chief.title}, {who}, requests of {options.batch}"
        key = _key(group, workers)
        yield Figure(key, title, "images/s", None if key == first else first)


def _key(group: Group, workers: int) -> str:
    return f"{group.key}_workers_{workers}"


def measure(options: Options, group: Group, exported: Path | None) -> Found:
    """All lines of a group; why one is not there, by its name."""
    batching = {"max_batch_size": options.batch, "allowed_batch_sizes": [options.batch]}
    model = served_model(group, group.chief, batching, exported)
    measured: dict[str, list[float]] = {}
    skipped: dict[str, str] = {}
    for workers in options.workers:
        name = f"{group.title}, {workers} workers"
        fraction = round(SHARED_FRACTION / workers, 3)
        try:
            with (
                serving([model], options, group, workers, fraction) as endpoint,
                Feeders(options.clients) as feeders,
            ):
                feeders.connect(endpoint, (options.batch, *group.network.row), workers)

                def rate(
                    key: str = _key(group, workers), feeders: Feeders = feeders
                ) -> dict[str, float]:
                    rows = feeders.rows_per_s(model.name, options.batch, options.seconds)
                    return {key: rows}

                found, failed = run_tolerant_rounds({name: rate}, options.repeat)
        except FAILURES as error:
            skipped[name] = describe(error)
            continue
        measured |= found
        skipped |= failed
    return measured, skipped
