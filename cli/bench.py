"""``batchyard bench``: measurements, each beside a reference in the same run."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from batchyard.benchmarks import (
    compute,
    faults,
    limits,
    overload,
    scale,
    security,
    small,
    tensors,
)
from batchyard.benchmarks.failures import BenchmarkFailed
from batchyard.benchmarks.faults_run import Effort
from batchyard.benchmarks.overload_served import ServedBench
from batchyard.benchmarks.overload_virtual import VirtualBench
from batchyard.benchmarks.page import page
from batchyard.benchmarks.results import Results
from batchyard.benchmarks.table import table
from batchyard.cli import bench_gpu, bench_options
from batchyard.cli.local_server import ServerDidNotStart
from batchyard.cli.outputs import end_on_sigterm, need_the_extra, writable
from batchyard.wire.control import EXIT_FAILURE
from batchyard.wire.errors import BatchyardError

_FILE = click.Path(dir_okay=False, writable=True, path_type=Path)


@click.group()
def command() -> None:
    """Measure Batchyard beside a reference in the same run, interleaved.

    Needs the extra `bench`: pip install 'batchyard[bench]'.
    """
    end_on_sigterm()


_LENGTHS = [
    bench_options.seconds(2.0),
    bench_options.repeat(5),
]
_REPORTS = [
    click.option(
        "--json", "json_path", type=_FILE, callback=writable, help="Write the results here."
    ),
    click.option(
        "--html", "html_path", type=_FILE, callback=writable, help="Write a page with plots here."
    ),
]


def _benchmark(measure: Callable[..., Results]) -> click.Command:
    """The subcommand that measures in rounds of some length, with options of its own too."""
    return _reporting(measure, [*_LENGTHS, *_REPORTS])


def _reporting(
    measure: Callable[..., Results | Iterator[Results]],
    options: list[Any],
    needs_the_extra: bool = True,
) -> click.Command:
    """The subcommand that measures and reports, with these options and its own.

    What takes long may give its results again and again while they grow: if it is ended, the files
    have what there was until then.
    """

    @functools.wraps(measure)
    def reported(json_path: Path | None, html_path: Path | None, **options: Any) -> None:
        if needs_the_extra:
            need_the_extra()
        try:
            found = measure(**options)
            for results in [found] if isinstance(found, Results) else found:
                _write(results, json_path, html_path)
        except (ServerDidNotStart, BenchmarkFailed, BatchyardError) as error:
            print(f"batchyard: {error}", file=sys.stderr)
            sys.exit(EXIT_FAILURE)
        click.echo(table(results))
        if results.skipped and not results.measured:
            print("batchyard: nothing could be measured", file=sys.stderr)
            sys.exit(EXIT_FAILURE)

    decorated: Callable[..., None] = reported
    for option in reversed(options):
        decorated = option(decorated)
    return command.command(measure.__name__.removeprefix("_"))(decorated)


def _write(results: Results, json_path: Path | None, html_path: Path | None) -> None:
    if json_path is not None:
        json_path.write_text(json.dumps(results.to_json(), indent=2) + "\n")
    if html_path is not None:
        html_path.write_text(page(results))


@_benchmark
def _limits(seconds: float, repeat: int) -> Results:
    """What this machine can do at best."""
    return limits.run(seconds, repeat)


@_benchmark
def _small(seconds: float, repeat: int) -> Results:
    """One-row requests beside a raw pyzmq ROUTER-DEALER echo."""
    return small.run(seconds, repeat)


@_benchmark
def _tensors(seconds: float, repeat: int) -> Results:
    """Images beside memcpy and bare TensorFlow; 10 MB beside 1 KB."""
    return tensors.run(seconds, repeat)


@_benchmark
def _compute(seconds: float, repeat: int) -> Results:
    """A real network at batch 32 beside the bare TensorFlow loop."""
    return compute.run(seconds, repeat)


@_benchmark
@click.option(
    "--workers",
    type=click.IntRange(1, 1024),
    multiple=True,
    default=scale.WORKERS,
    show_default=True,
    help="Simulated GPUs of one server. May be given again.",
)
def _scale(seconds: float, repeat: int, workers: tuple[int, ...]) -> Results:
    """The useful share of N simulated GPUs behind one broker."""
    return scale.run(seconds, repeat, workers)


@_benchmark
def _security(seconds: float, repeat: int) -> Results:
    """What keys cost: CURVE beside plain TCP."""
    return security.run(seconds, repeat)


@_benchmark
def _json(seconds: float, repeat: int) -> Results:
    """Bodies of REST beside json and orjson."""
    # It needs what not every benchmark does.
    from batchyard.benchmarks import json_bodies

    return json_bodies.run(seconds, repeat)


@_benchmark
def _peers(seconds: float, repeat: int) -> Results:
    """Other servers at the same work."""
    from batchyard.benchmarks import peers

    return peers.run(seconds, repeat)


def _overload(
    simulate: bool, seconds: float, repeat: int, seed: int, only: tuple[str, ...]
) -> Results:
    """More than can be done: what is answered in time, and how long until it is again."""
    kind = VirtualBench if simulate else ServedBench
    return overload.run(kind(seconds, repeat, seed), only)


_SEED = click.option("--seed", type=int, default=1, show_default=True, help="Of all choices.")

_reporting(
    _overload,
    [
        click.option(
            "--simulate", is_flag=True, help="In virtual time, against simulated devices."
        ),
        bench_options.only(overload.PARTS),
        bench_options.seconds(10.0, "each load"),
        bench_options.repeat(3),
        _SEED,
        *_REPORTS,
    ],
)


def _faults(seconds: float | None, times: int | None, seed: int, only: tuple[str, ...]) -> Results:
    """Kills, hangs, poison, restarts and new versions, under load."""
    return faults.run(Effort(seconds, times, seed), only)


_reporting(
    _faults,
    [
        bench_options.only(faults.PARTS),
        click.option(
            "--seconds",
            type=click.FloatRange(0, 86_400, min_open=True),
            help="Length of the kills and of the mixed load.  [default: 60, 600]",
        ),
        click.option(
            "--times",
            type=click.IntRange(1, 1000),
            help="How often what is counted happens.  [default: as the goals ask]",
        ),
        _SEED,
        *_REPORTS,
    ],
)


def _tuner(
    deadline_ms: float, throughput: bool, budget_s: float | None, repeat: int, simulate: bool
) -> Results:
    """`batchyard tune` beside the best of an exhaustive grid.

    The device is a python callable that sleeps. The grid takes about twenty minutes.
    """
    # It needs what not every benchmark does.
    from batchyard.benchmarks import tuner_grid

    return tuner_grid.run(None if throughput else deadline_ms, budget_s, repeat, simulate=simulate)


_reporting(
    _tuner,
    [
        click.option(
            "--deadline-ms",
            type=click.FloatRange(0, min_open=True),
            default=60.0,
            show_default=True,
            help="The goal: the highest rate with 99 % inside it.",
        ),
        click.option("--throughput", is_flag=True, help="The goal instead."),
        click.option(
            "--budget-s",
            type=click.FloatRange(5, 86_400),
            help="The tuner's.  [default: as `batchyard tune` has it]",
        ),
        click.option(
            "--repeat",
            type=click.IntRange(1, 1000),
            default=5,
            show_default=True,
            help="Rounds in which both are measured in the end; medians are reported.",
        ),
        click.option("--simulate", is_flag=True, help="In virtual time, in a minute."),
        *_REPORTS,
    ],
)


_reporting(
    bench_gpu.gpu,
    [*bench_gpu.OPTIONS, *_REPORTS],
    # Machines with cards may have frameworks and not much else: most parts need no more either.
    needs_the_extra=False,
)
