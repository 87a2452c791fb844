"""``python -m batchyard.benchmarks.gpu.check``: whether workers are bound to GPUs as they say.

Starts real pools on the GPUs of this machine, for each framework that is found here, and asks NVML
what their processes use. Prints a line for each thing that it looked at, with the figure and what
it is held against. Exits with 0 when all hold, with 1 when one does not, with 3 without a GPU.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import click

from batchyard.benchmarks.gpu.card_memory import MIB
from batchyard.benchmarks.gpu.check_binding import check_each
from batchyard.benchmarks.gpu.check_memory import check_cap, check_growth, check_sharing
from batchyard.benchmarks.gpu.check_subject import Subject, guarded
from batchyard.benchmarks.gpu.frameworks import NAMES, Framework, look_at
from batchyard.benchmarks.gpu.pools import models_folder, python_allocation, saved_allocation
from batchyard.benchmarks.gpu.verdicts import Outcome, Verdict, skipped, summary
from batchyard.benchmarks.served import Model
from batchyard.cli.local_server import ServerDidNotStart, export
from batchyard.pool.inventory import Visible, read_inventory, visible_devices

EXIT_FAILED = 1
EXIT_NO_GPU = 3
_FRACTION = 0.3
_LIMIT_SHARE = 0.2


@click.command()
@click.option(
    "--framework",
    "wanted",
    multiple=True,
    metavar="NAME",
    help=f"Only this one of {', '.join(NAMES)}; NAME=FILE.py for a file of your own, with a "
    "function `allocate` as in benchmarks/gpu/models. May be given again.",
)
@click.option("--device", default="gpu:0", show_default=True, help="The card that is filled.")
@click.option(
    "--break-context",
    is_flag=True,
    help="Also have a worker break its CUDA context by an illegal access, which the driver logs.",
)
@click.option(
    "--device-arrays/--no-device-arrays",
    default=True,
    show_default=True,
    help="Whether Python functions get arrays on the card.",
)
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path))
def command(
    wanted: Sequence[str],
    device: str,
    break_context: bool,
    device_arrays: bool,
    json_path: Path | None,
) -> None:
    """Check on the GPUs of this machine that workers keep to their card and their share of it."""
    signal.signal(signal.SIGTERM, _end)
    visible = visible_devices(read_inventory(), os.environ)
    card = next((d for d in visible.devices if device in (d.label, d.uuid)), None)
    if card is None:
        which = f"{device} is not there" if visible.devices else "no GPU"
        click.echo(f"{which}: {visible.note or ', '.join(map(str, visible.devices))}")
        sys.exit(EXIT_NO_GPU)
    import pynvml  # it imports: there would be no card otherwise

    pynvml.nvmlInit()
    started = time.monotonic()
    machine = _describe(visible, pynvml)
    for name, value in machine.items():
        click.echo(f"{name:8} {value}")
    verdicts = []
    with tempfile.TemporaryDirectory(prefix="batchyard-") as folder:
        found = _check_all(
            wanted, Path(folder), visible, device, device_arrays, break_context, pynvml
        )
        for verdict in found:
            verdicts.append(verdict)
            click.echo(str(verdict))
    failed = not any(verdict.outcome is Outcome.OK for verdict in verdicts)
    failed |= any(verdict.outcome is Outcome.FAILED for verdict in verdicts)
    click.echo(f"{summary(verdicts)} in {time.monotonic() - started:.0f} s")
    if json_path is not None:
        report = {"machine": machine, "checks": [verdict.to_json() for verdict in verdicts]}
        json_path.write_text(json.dumps(report, indent=2) + "\n")
    sys.exit(EXIT_FAILED if failed else 0)


def _check_all(
    wanted: Sequence[str],
    folder: Path,
    visible: Visible,
    device: str,
    device_arrays: bool,
    break_context: bool,
    nvml: Any,
) -> Iterator[Verdict]:
    """The verdicts on each framework."""
    (card,) = (d for d in visible.devices if device in (d.label, d.uuid))
    for name in wanted or NAMES:
        allocation = _own(name, device_arrays) if "=" in name else None
        if allocation is None:
            framework = look_at(name)
            if framework.why_not:
                yield skipped(name, "framework", framework.why_not)
                continue
            click.echo(f"{'with':8} {framework}")
            try:
                allocation = _allocation(framework, folder, device_arrays)
            except ServerDidNotStart as error:
                yield Verdict(name, "model", Outcome.FAILED, str(error).splitlines()[-1])
                continue
        subject = Subject(name.partition("=")[0], allocation, card, visible.devices, nvml)
        yield from _check(subject, break_context)


def _check(subject: Subject, break_context: bool) -> Iterator[Verdict]:
    total = subject.memory().total
    fraction = {"per_process_gpu_memory_fraction": _FRACTION}
    limit_mb = round(_LIMIT_SHARE * total / MIB)
    limit = {"gpu_memory_limit_mb": limit_mb}
    by_fraction, by_limit = f"fraction {_FRACTION:g}", f"limit_mb {limit_mb}"
    yield from guarded(subject, "growth", lambda: check_growth(subject, break_context))
    yield from guarded(
        subject,
        by_fraction,
        lambda: check_cap(subject, by_fraction, fraction, int(_FRACTION * total)),
    )
    yield from guarded(
        subject, by_limit, lambda: check_cap(subject, by_limit, limit, limit_mb * MIB)
    )
    for workers in (2, 4):
        name = f"{workers} workers"
        yield from guarded(subject, name, functools.partial(check_sharing, subject, workers))
    yield from guarded(subject, "each on its own card", lambda: check_each(subject))


def _allocation(framework: Framework, folder: Path, device_arrays: bool) -> Model:
    if framework.name == "tensorflow":
        export(folder / "tensorflow", "batchyard.benchmarks.gpu.models.tensorflow_allocation")
        return saved_allocation(folder / "tensorflow")
    path = models_folder() / f"{framework.name}_allocation.py"
    return python_allocation(f"{path}:allocate", device_arrays=device_arrays)


def _own(named: str, device_arrays: bool) -> Model:
    path = Path(named.partition("=")[2])
    return python_allocation(f"{path.absolute()}:allocate", device_arrays=device_arrays)


def _describe(visible: Visible, nvml: Any) -> dict[str, str]:
    """What the page begins with."""
    version = nvml.nvmlSystemGetCudaDriverVersion_v2()
    driver = nvml.nvmlSystemGetDriverVersion()
    return {
        "time": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        "cards": ", ".join(map(str, visible.devices)),
        "driver": f"{driver}, for CUDA {version // 1000}.{version % 1000 // 10}",
        "python": sys.version.split()[0],
    }


def _end(number: int, frame: FrameType | None) -> None:
    """As Ctrl-C has it: servers are ended on the way."""
    sys.exit(128 + number)


if __name__ == "__main__":
    command()
