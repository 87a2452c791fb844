"""``batchyard bench gpu``: the server on a card, beside bare loops on the same card.

What each part measures is said in its module: ``transfers``, ``offline`` (and latency), ``online``
(server rate, prediction, goodput), ``sharing`` (several workers). Each framework that is found is
measured; what cannot be measured is told with its reason, and the rest goes on.

What was expected before any of it ran on a card stands in docs/gpu.md.
"""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from batchyard.benchmarks.gpu import offline, online, sharing, transfers
from batchyard.benchmarks.gpu.bare import BareLoop
from batchyard.benchmarks.gpu.card_facts import CardWatch
from batchyard.benchmarks.gpu.guarded import describe
from batchyard.benchmarks.gpu.options import FRACTION, Options
from batchyard.benchmarks.gpu.subjects import FRAMEWORKS, Group
from batchyard.benchmarks.gpu.tolerance import FAILURES, Found
from batchyard.benchmarks.machine import describe as describe_machine
from batchyard.benchmarks.progress import ProgressBar
from batchyard.benchmarks.results import Figure, Results
from batchyard.cli.local_server import export

PARTS = ("transfers", "offline", "latency", "server", "workers")
NO_CARD = "none: the CPU stands in for it, and nothing here is a GPU's figure"
# cuDNN comes as a package of its own; frameworks do not all say which it is.
_PACKAGES = ("nvidia-cudnn-cu12", "nvidia-cudnn-cu13", "cuda-bindings", "nvidia-ml-py")
_GIT_TIMEOUT_S = 10.0
_EXPORTER = "batchyard.benchmarks.gpu.models.tensorflow_models"
# What is measured of each framework at its best only.
_OF_CHIEFS = {
    "server": (online.figures, online.measure),
    "workers": (sharing.figures, sharing.measure),
}


@dataclass(frozen=True, slots=True)
class _Unit:
    """What is measured together, between two looks at the results."""

    name: str
    figures: Sequence[Figure]
    measure: Callable[[], Found]


@dataclass(slots=True)
class _Exports:
    """SavedModels, each written when it is first needed."""

    folder: Path
    _paths: dict[str, Path] = field(default_factory=dict)

    def path(self, group: Group) -> Path | None:
        """Of a group's SavedModel; None for other frameworks. Raises ServerDidNotStart."""
        if group.framework != "tensorflow":
            return None
        if group.key not in self._paths:
            path = self.folder / group.key
            export(path, _EXPORTER, group.network.name, group.precision)
            self._paths[group.key] = path
        return self._paths[group.key]


def run(
    options: Options,
    groups: Sequence[Group],
    only: Sequence[str],
    skipped: Mapping[str, str],
    settings: Mapping[str, Any],
) -> Iterator[Results]:
    """Measures part after part; after each, all that was found so far.

    ``skipped`` says why something is not among the groups; ``settings`` is what was asked for.
    """
    parts = frozenset(only or PARTS)
    results = Results("gpu", describe_machine(), dict(settings), [], {}, dict(skipped))
    results.machine |= _software()
    results.machine["card"] = NO_CARD if options.card is None else str(options.card)
    with ExitStack() as stack:
        watch = stack.enter_context(CardWatch(options.card.uuid if options.card else None))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="batchyard-")))
        groups = _those_that_run(options, groups, results)
        units = _units(options, groups, parts, _Exports(folder))
        bar = stack.enter_context(ProgressBar("measuring", len(units)))
        for done, unit in enumerate(units):
            bar.note(f"measuring {unit.name} ...")
            bar.show(unit.name, done)
            results.figures += unit.figures
            try:
                measured, failed = unit.measure()
            except FAILURES as error:
                results.skipped[unit.name] = describe(error)
            else:
                results.measured |= measured
                results.skipped |= failed
            results.machine |= watch.facts()
            yield results
    if not units:
        yield results


def _software() -> dict[str, str]:
    """What is measured, and with what, as far as it is known here."""
    found: dict[str, str] = {}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        ended = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).resolve().parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=_GIT_TIMEOUT_S,
        )
        found["commit"] = ended.stdout.strip()
    return found


def _those_that_run(options: Options, groups: Sequence[Group], results: Results) -> list[Group]:
    """Groups of frameworks that are installed, and see the card."""
    usable = {}
    for framework in dict.fromkeys(group.framework for group in groups):
        first = next(group for group in groups if group.framework == framework)
        try:
            with BareLoop(framework, options.visible_to(first), FRACTION) as bare:
                versions = bare.versions()
        except FAILURES as error:
            results.skipped[FRAMEWORKS[framework]] = describe(error)
            continue
        if first.on_card:
            shown = ", ".join(f"{name} {value}" for name, value in versions.items())
            results.machine[FRAMEWORKS[framework]] = shown.removeprefix("version ")
            if options.card is not None and "device" not in versions:
                results.skipped[FRAMEWORKS[framework]] = f"{shown}: it sees no GPU"
                continue
        usable[framework] = True
    return [group for group in groups if group.framework in usable]


def _units(
    options: Options, groups: Sequence[Group], parts: frozenset[str], exports: _Exports
) -> list[_Unit]:
    units: list[_Unit] = []
    if "transfers" in parts:
        lines = [*transfers.figures()]
        units.append(_Unit("transfers", lines, partial(transfers.measure, options)))
    if asked := parts & {"offline", "latency"}:
        for group in groups:
            name = f"{' and '.join(sorted(asked, reverse=True))} of {group.title}"
            lines = [*offline.figures(options, group, asked)]
            units.append(_Unit(name, lines, partial(_offline, options, group, exports, asked)))
    for part, (figures, measure) in _OF_CHIEFS.items():
        for group in _chiefs(groups) if part in parts else ():
            lines = [*figures(options, group)]
            how = partial(_of_chief, measure, options, group, exports)
            units.append(_Unit(f"{part} of {group.title}", lines, how))
    return units


def _offline(options: Options, group: Group, exports: _Exports, parts: frozenset[str]) -> Found:
    return offline.measure(options, group, exports.path(group), parts)


def _of_chief(
    measure: Callable[[Options, Group, Path | None], Found],
    options: Options,
    group: Group,
    exports: _Exports,
) -> Found:
    return measure(options, group, exports.path(group))


def _chiefs(groups: Sequence[Group]) -> list[Group]:
    """Of each framework the first network, at the precision that its card is fastest at."""
    chiefs: dict[str, Group] = {}
    for group in groups:
        best = chiefs.get(group.framework)
        if best is None or (best.network == group.network and group.precision == "float16"):
            chiefs[group.framework] = group
    return list(chiefs.values())
