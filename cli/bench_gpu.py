"""``batchyard bench gpu``: what it takes from the command line."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any

import click

from batchyard.benchmarks.gpu import bench as gpu_bench
from batchyard.benchmarks.gpu.options import Options, find_card, usual_clients
from batchyard.benchmarks.gpu.subjects import FRAMEWORKS, NETWORKS, PRECISIONS, groups
from batchyard.benchmarks.results import Results
from batchyard.cli import bench_options


def gpu(
    device: str,
    framework: tuple[str, ...],
    model: tuple[str, ...],
    precision: tuple[str, ...],
    xla: str,
    only: tuple[str, ...],
    batch: int,
    deadline_ms: float,
    workers: tuple[int, ...],
    clients: int | None,
    seconds: float,
    repeat: int,
) -> Iterator[Results]:
    """A card behind the server, beside bare loops on the same card.

    TensorFlow, PyTorch and JAX, as far as they are installed. The whole takes about an hour;
    --framework, --model, --precision and --only choose from it.
    """
    settings = {name: value for name, value in locals().items() if value is not None}
    card = find_card(device)
    if card is None:
        print(f"batchyard: card: {gpu_bench.NO_CARD}", file=sys.stderr)
    options = Options(
        device=device,
        seconds=seconds,
        repeat=repeat,
        batch=batch,
        deadline_s=deadline_ms / 1e3,
        clients=clients or usual_clients(),
        workers=tuple(sorted(set(workers))),
        card=card,
    )
    choices = (True, False) if xla == "both" else (xla == "on",)
    found, skipped = groups(framework, model, precision, choices)
    settings |= {"clients": options.clients}
    yield from gpu_bench.run(options, found, only, skipped, settings)


def _several(option: str, choices: Iterable[str], what: str) -> Any:
    return click.option(
        option,
        type=click.Choice(list(choices)),
        multiple=True,
        default=list(choices),
        help=f"{what} May be given again.  [default: all]",
    )


OPTIONS = [
    click.option(
        "--device",
        default="gpu:0",
        show_default=True,
        help="gpu:N, a GPU or MIG UUID; cpu to try the benchmark out where there is no card.",
    ),
    _several("--framework", FRAMEWORKS, "Measure this one only."),
    _several("--model", NETWORKS, "Measure this network only."),
    _several("--precision", PRECISIONS, "Measure at this precision only."),
    click.option(
        "--xla",
        type=click.Choice(["on", "off", "both"]),
        default="both",
        show_default=True,
        help="Whether XLA compiles, where a framework leaves the choice.",
    ),
    bench_options.only(gpu_bench.PARTS),
    click.option(
        "--batch",
        type=click.IntRange(1, 4096),
        default=64,
        show_default=True,
        help="Rows that run together.",
    ),
    click.option(
        "--deadline-ms",
        type=click.FloatRange(0, min_open=True),
        default=15.0,
        show_default=True,
        help="Of the server rate and of goodput.",
    ),
    click.option(
        "--workers",
        type=click.IntRange(1, 64),
        multiple=True,
        default=(1, 2, 4),
        show_default=True,
        help="Of one server, which share the card. May be given again.",
    ),
    click.option(
        "--clients",
        type=click.IntRange(1, 64),
        help="Processes that send requests.  [default: one for four cores, 4 at most]",
    ),
    bench_options.seconds(2.0),
    bench_options.repeat(3),
]
