"""``batchyard load``: put load on a server and say how it fared."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batchyard.benchmarks.failures import BenchmarkFailed
from batchyard.benchmarks.load.plan import LoadPlan, Poisson
from batchyard.cli.load_options import load_options, make_plan
from batchyard.cli.outputs import end, need_the_extra
from batchyard.wire.control import EXIT_CONFIGURATION, EXIT_FAILURE, INTERRUPTED_EXIT
from batchyard.wire.errors import BatchyardError, ConfigurationError

if TYPE_CHECKING:
    from batchyard.benchmarks.load.result import LoadResult
    from batchyard.benchmarks.load.search import Found


@click.command()
@click.argument("model", required=False)
@load_options
def command(
    find_rate: bool,
    quiet: bool,
    json_path: Path | None,
    html_path: Path | None,
    compare: tuple[Path, ...],
    **options: Any,
) -> None:
    """Put load on MODEL and say how it fared.

    Latency counts from the planned send time: a server, or a generator, that stalls is not left
    out. Without MODEL, --compare and --html make a page of former runs.

    Exit code 1: the server cannot be reached, or a generator failed.
    """
    need_the_extra()
    if compare and html_path is None:
        raise click.UsageError("--compare needs --html")
    outputs = _Outputs(quiet, json_path, html_path, compare)
    try:
        if compare and options["model"] is None and options["mix"] is None:
            # Former runs alone.
            _write(outputs, _compared(compare), None, None)
            return
        with _ended_by_sigterm():
            _run(make_plan(find_rate=find_rate, **options), find_rate, outputs)
    except ConfigurationError as error:
        _fail(str(error), EXIT_CONFIGURATION)
    except BatchyardError as error:
        # What the caller did wrong is wrong usage: no such model, inputs that it does not take.
        _fail(str(error), EXIT_CONFIGURATION if error.fault == "caller" else EXIT_FAILURE)
    except BenchmarkFailed as error:
        _fail(str(error), EXIT_FAILURE)
    except KeyboardInterrupt:
        _fail("stopped before there was anything to show; nothing is written", INTERRUPTED_EXIT)


@dataclass(frozen=True, slots=True)
class _Outputs:
    """Where a result goes, beside the terminal."""

    quiet: bool
    json_path: Path | None
    html_path: Path | None
    compare: tuple[Path, ...]


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """What `kill` or `timeout` ends has generators to end too, as what Ctrl-C ends."""
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _fail(message: str, code: int) -> None:
    print(f"batchyard: {message}", file=sys.stderr)
    sys.exit(code)


def _run(plan: LoadPlan, find_rate: bool, outputs: _Outputs) -> None:
    # They need the extra `bench` and take their time to import: after the options were checked.
    from rich.console import Console

    from batchyard.benchmarks.load import trials
    from batchyard.benchmarks.load.progress import LiveView
    from batchyard.benchmarks.load.run import Stopped, run_load
    from batchyard.benchmarks.load.table import describe, describe_trial, search, table

    console = Console(highlight=False)
    compared = _compared(outputs.compare)
    found = None
    stopped = None
    with LiveView(outputs.quiet) as view:
        if find_rate:
            view.title(f"{describe(plan)}: searching")
            found = trials.find(
                plan, progress=view, on_trial=lambda trial: view.note(describe_trial(trial))
            )
            plan = replace(plan, arrivals=Poisson(found.rate) if found.rate else plan.arrivals)
        result = None
        if found is None or found.rate:
            view.title(describe(plan))
            try:
                result = run_load(plan, view)
            except Stopped as error:
                stopped = error.result
    if found is not None:
        console.print(search(found))
    if stopped is not None:
        console.print(table(stopped))
        _fail(
            f"stopped after {stopped.duration_s:g} of {plan.duration_s:g} s: these are shown, and "
            "what had no answer yet counts as unanswered; nothing is written",
            INTERRUPTED_EXIT,
        )
    if result is not None:
        console.print(table(result))
    _write(outputs, compared, result, found)


def _write(
    outputs: _Outputs,
    compared: dict[str, LoadResult],
    result: LoadResult | None,
    found: Found | None,
) -> None:
    if outputs.json_path is not None:
        values = {} if result is None else result.to_json()
        if found is not None:
            values["found"] = found.to_json()
        outputs.json_path.write_text(json.dumps(values) + "\n")
    if outputs.html_path is not None:
        from batchyard.benchmarks.load.report import page

        results = dict(compared)
        if result is not None:
            results[_unused(outputs.html_path.stem, compared)] = result
        if results:
            outputs.html_path.write_text(page(results, found))


def _unused(name: str, names: Collection[str]) -> str:
    return name if name not in names else f"{name} (this run)"


def _compared(paths: tuple[Path, ...]) -> dict[str, LoadResult]:
    """Results of former runs."""
    if not paths:
        return {}
    from batchyard.benchmarks.load.report import read

    try:
        return read(paths)
    except ValueError as error:
        raise ConfigurationError(str(error)) from None
