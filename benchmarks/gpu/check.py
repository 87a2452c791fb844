"""``python -m batchyard.benchmarks.gpu.check``: whether workers keep to their card and their share.

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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import click

from batchyard.benchmarks.gpu.card_memory import EXPLANATIONS, MIB
from batchyard.benchmarks.gpu.check_binding import check_each
from batchyard.benchmarks.gpu.check_memory import check_cap, check_growth, check_sharing
from batchyard.benchmarks.gpu.check_subject import Subject, verdicts_of
from batchyard.benchmarks.gpu.frameworks import NAMES, Framework, look_at
from batchyard.benchmarks.gpu.pools import (
    has_binding,
    models_folder,
    python_allocation,
    saved_allocation,
)
from batchyard.benchmarks.gpu.verdicts import Outcome, Verdict, skipped, summary
from batchyard.benchmarks.served import Model
from batchyard.cli.local_server import ServerDidNotStart, export
from batchyard.pool.inventory import Visible, VisibleDevice, read_inventory, visible_devices
from batchyard.pool.mps import read_mps
from batchyard.wire.control import INTERRUPTED_EXIT

EXIT_FAILED = 1
EXIT_NO_GPU = 3
_FRACTION = 0.3
_LIMIT_SHARE = 0.2
_PARTS = ("caps", "sharing", "cards")


@dataclass(frozen=True, slots=True)
class _Wish:
    """What is to be checked."""

    frameworks: Sequence[str]
    card: VisibleDevice
    parts: Sequence[str]
    break_context: bool
    device_arrays: bool


@click.command()
@click.option(
    "--framework",
    "frameworks",
    multiple=True,
    metavar="NAME",
    help=f"Only this one of {', '.join(NAMES)}; NAME=FILE.py for a file of your own, with a "
    "function `allocate` as in benchmarks/gpu/models. May be given again.",
)
@click.option("--device", default="gpu:0", show_default=True, help="The card that is filled.")
@click.option(
    "--part",
    "parts",
    multiple=True,
    type=click.Choice(_PARTS),
    help="Only this one; growth is always checked. May be given again.",
)
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
@click.option(
    "--json",
    "json_path",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="Write the results here.",
)
def command(device: str, json_path: Path | None, parts: Sequence[str], **options: Any) -> None:
    """Check on the GPUs of this machine that workers keep to their card and their share of it."""
    unknown = [name for name in options["frameworks"] if "=" not in name and name not in NAMES]
    if unknown:
        raise click.BadParameter(f"{unknown[0]} is none of {', '.join(NAMES)}, nor NAME=FILE.py")
    signal.signal(signal.SIGTERM, _end)
    visible = visible_devices(read_inventory(), os.environ)
    card = next((d for d in visible.devices if device in (d.label, d.uuid)), None)
    if card is None:
        here = ", ".join(map(str, visible.devices))
        click.echo(f"{device} is not there, but {here}" if here else f"no GPU: {visible.note}")
        sys.exit(EXIT_NO_GPU)
    import pynvml  # it imports: there would be no card otherwise

    pynvml.nvmlInit()
    started = time.monotonic()
    machine = _describe(visible, pynvml)
    for name, value in machine.items():
        click.echo(f"{name:8} {value}")
    verdicts = []
    with tempfile.TemporaryDirectory(prefix="batchyard-") as folder:
        if not has_binding():
            click.echo("without  cuda-bindings: no arrays on the card, no page-locked arena")
            options["device_arrays"] = False
        wish = _Wish(card=card, parts=parts or _PARTS, **options)
        for verdict in _check_all(wish, Path(folder), visible, pynvml):
            verdicts.append(verdict)
            click.echo(str(verdict))
    for how, explanation in EXPLANATIONS.items():
        if any(how in verdict.found for verdict in verdicts):
            click.echo(f"{how}: {explanation}")
    click.echo(f"{summary(verdicts)} in {time.monotonic() - started:.0f} s")
    if all(verdict.outcome is Outcome.SKIPPED for verdict in verdicts):
        click.echo(f"nothing was checked: install one of {', '.join(NAMES)} for {sys.executable}")
    if json_path is not None:
        report = {"machine": machine, "checks": [verdict.to_json() for verdict in verdicts]}
        json_path.write_text(json.dumps(report, indent=2) + "\n")
    outcomes = {verdict.outcome for verdict in verdicts}
    # With everything skipped, nothing is known.
    holds = Outcome.FAILED not in outcomes and Outcome.OK in outcomes
    sys.exit(0 if holds else EXIT_FAILED)


def _check_all(wish: _Wish, folder: Path, visible: Visible, nvml: Any) -> Iterator[Verdict]:
    """The verdicts on each framework."""
    for name in wish.frameworks or NAMES:
        allocation = _own(name, wish.device_arrays) if "=" in name else None
        if allocation is None:
            framework = look_at(name)
            if framework.why_not:
                yield skipped(name, "framework", framework.why_not)
                continue
            click.echo(f"{'with':8} {framework}")
            try:
                allocation = _allocation(framework, folder, wish.device_arrays)
            except ServerDidNotStart as error:
                yield Verdict(name, "model", Outcome.FAILED, str(error).splitlines()[-1])
                continue
        subject = Subject(name.partition("=")[0], allocation, wish.card, visible.devices, nvml)
        for check, part in _parts(subject, wish):
            yield from verdicts_of(subject, check, part)


def _parts(subject: Subject, wish: _Wish) -> Iterator[tuple[str, Callable[[], Iterator[Verdict]]]]:
    """What is wanted of the check; the first is always there: others need what it measures."""
    total = subject.memory().total
    yield "growth", lambda: check_growth(subject, wish.break_context)
    if "caps" in wish.parts:
        name, setting = f"fraction {_FRACTION:g}", {"per_process_gpu_memory_fraction": _FRACTION}
        cap = int(_FRACTION * total)
        yield name, functools.partial(check_cap, subject, name, setting, cap)
        limit_mb = round(_LIMIT_SHARE * total / MIB)
        name, limit = f"limit_mb {limit_mb}", {"gpu_memory_limit_mb": limit_mb}
        yield name, functools.partial(check_cap, subject, name, limit, limit_mb * MIB)
    if "sharing" in wish.parts:
        for workers in (2, 4):
            yield f"{workers} workers", functools.partial(check_sharing, subject, workers)
    if "cards" in wish.parts:
        yield "each on its own card", lambda: check_each(subject)


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
    mps = read_mps(os.environ)
    return {
        "time": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        "cards": ", ".join(map(str, visible.devices)),
        "driver": f"{driver}, for CUDA {version // 1000}.{version % 1000 // 10}",
        "mps": f"its daemon listens in {mps.directory}" if mps.is_there else "none",
        "python": sys.version.split()[0],
    }


def _end(number: int, frame: FrameType | None) -> None:
    """As Ctrl-C has it: servers are ended on the way."""
    sys.exit(128 + number)


def main() -> None:
    """Runs it; by Ctrl-C it ends as a shell has it for what a signal ended."""
    try:
        command.main(standalone_mode=False)
    except click.Abort:
        sys.exit(INTERRUPTED_EXIT)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
