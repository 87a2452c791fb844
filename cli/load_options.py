"""The options of ``batchyard load``, and the plan that they come to."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from batchyard.benchmarks.load.arrivals import read_trace
from batchyard.benchmarks.load.mix import read_mix
from batchyard.benchmarks.load.plan import (
    Arrivals,
    Constant,
    LoadPlan,
    MixEntry,
    Poisson,
    Ramp,
    Steps,
    Trace,
)
from batchyard.cli.connecting import key_options
from batchyard.cli.outputs import writable
from batchyard.wire.errors import ConfigurationError
from batchyard.wire.signatures import DEFAULT_SIGNATURE

_DURATION_S = 10.0
# What each kind of request has for itself.
_OF_ENTRIES = (
    "deadline_ms",
    "rows",
    "shape",
    "inputs",
    "signature",
    "version",
    "label",
    "priority",
)
_POSITIVE = click.FloatRange(0, min_open=True)
_INPUT_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_OUTPUT_FILE = click.Path(dir_okay=False, writable=True, path_type=Path)


def _ramp(context: click.Context, option: click.Parameter, text: str | None) -> Any:
    if text is None:
        return None
    rates = text.split(":")
    try:
        first, last = (float(rate) for rate in rates)
    except ValueError:
        raise click.BadParameter(f"{text!r} is no ramp like 100:2000") from None
    return first, last


def _steps(context: click.Context, option: click.Parameter, text: str | None) -> Any:
    if text is None:
        return None
    try:
        steps = []
        for step in text.split(","):
            seconds, rate = (float(number) for number in step.split(":"))
            steps.append((seconds, rate))
    except ValueError:
        raise click.BadParameter(f"{text!r} are no steps like 5:100,5:200") from None
    return tuple(steps)


def _shape(context: click.Context, option: click.Parameter, text: str | None) -> Any:
    try:
        return tuple(int(dim) for dim in text.split(",")) if text else ()
    except ValueError:
        raise click.BadParameter(f"{text!r} is no shape like 224,224") from None


_WHEN = [
    click.option("--rate", type=_POSITIVE, help="Requests per second, whatever the server does."),
    click.option(
        "--arrivals",
        type=click.Choice(["poisson", "constant"]),
        default="poisson",
        show_default=True,
        help="Of --rate: independent of each other, or evenly.",
    ),
    click.option(
        "--ramp",
        metavar="FROM:TO",
        callback=_ramp,
        help="A rate that changes evenly, in requests per second.",
    ),
    click.option(
        "--steps",
        metavar="SECONDS:RATE,...",
        callback=_steps,
        help="One rate after the other.",
    ),
    click.option(
        "--trace",
        type=_INPUT_FILE,
        help="A file of send times in seconds, one a line; or JSON lines with t, model, rows.",
    ),
    click.option(
        "--concurrency",
        type=click.IntRange(1),
        help="Instead: so many callers, each waiting for its answer.",
    ),
    click.option(
        "--find-rate",
        is_flag=True,
        help="Instead: the highest Poisson rate at which 99 % are inside --deadline-ms.",
    ),
    click.option(
        "--duration", type=_POSITIVE, help=f"Seconds.  [default: {_DURATION_S:g}, or the trace's]"
    ),
    click.option(
        "--warmup",
        type=click.FloatRange(0),
        default=2.0,
        show_default=True,
        help="Seconds of the same traffic before, which are not counted.",
    ),
]
_WHAT = [
    click.option("--deadline-ms", type=_POSITIVE, help="Answers that come later count as late."),
    click.option(
        "--rows", type=click.IntRange(1), default=1, show_default=True, help="Rows of each request."
    ),
    click.option(
        "--shape",
        callback=_shape,
        help="Sizes of the inputs' open dimensions behind the first, as 224,224. Default: 1 each.",
    ),
    click.option(
        "--inputs",
        metavar="JSON|@FILE",
        help="What each request sends, as for `batchyard predict`. Default: random values.",
    ),
    click.option("--signature", default=DEFAULT_SIGNATURE, show_default=True, help="The model's."),
    click.option(
        "--version", type=int, help="The model's version. Default: the one that is served."
    ),
    click.option("--label", help="The version's label instead."),
    click.option(
        "--priority",
        type=int,
        default=0,
        show_default=True,
        help="The requests': higher ones go first.",
    ),
    click.option(
        "--mix",
        type=_INPUT_FILE,
        help="A TOML file with a [[requests]] table for each kind of request, instead of MODEL.",
    ),
]
_HOW = [
    click.option(
        "--connect",
        "--endpoint",
        "target",
        help="tcp:// or ipc://; http:// and grpc:// are TensorFlow Serving's interfaces. "
        "Default: this machine's Batchyard.",
    ),
    click.option(
        "--processes",
        type=click.IntRange(1, 256),
        default=1,
        show_default=True,
        help="Load generators that share the rate.",
    ),
    click.option(
        "--seed",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        help="The same seed sends the same requests at the same times.",
    ),
    click.option("--quiet", is_flag=True, help="Show nothing while it runs."),
    click.option(
        "--json", "json_path", type=_OUTPUT_FILE, callback=writable, help="Write the result here."
    ),
    click.option(
        "--html",
        "html_path",
        type=_OUTPUT_FILE,
        callback=writable,
        help="Write a page with plots here.",
    ),
    click.option(
        "--compare",
        type=_INPUT_FILE,
        multiple=True,
        help="Show a former run too: what --json or --html wrote. May be given again.",
    ),
]


def load_options(function: Any) -> Any:
    """Adds all of them to a command."""
    options: list[Callable[[Any], Any]] = [*_WHEN, *_WHAT, *_HOW]
    for option in reversed(options):
        function = option(function)
    return key_options(function)


def make_plan(
    *,
    model: str | None,
    mix: Path | None,
    target: str | None,
    concurrency: int | None,
    duration: float | None,
    warmup: float,
    processes: int,
    seed: int,
    **options: Any,
) -> LoadPlan:
    """The plan. Raises UsageError and ConfigurationError for what makes none."""
    arrivals = _arrivals(concurrency=concurrency, duration=duration, **options)
    if duration is None:
        duration = _natural_duration(arrivals)
    return LoadPlan(
        target=target,
        mix=_mix(model, mix, options),
        arrivals=arrivals,
        concurrency=concurrency,
        duration_s=duration,
        warmup_s=warmup,
        processes=processes,
        seed=seed,
    )


def _mix(model: str | None, mix: Path | None, options: dict[str, Any]) -> tuple[MixEntry, ...]:
    if (model is None) == (mix is None):
        raise click.UsageError("needs either MODEL or --mix FILE")
    if mix is not None:
        source = click.get_current_context().get_parameter_source
        given = [name for name in _OF_ENTRIES if source(name) is ParameterSource.COMMANDLINE]
        if given:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise click.UsageError(f"{flags}: beside --mix, its file says that of each kind")
        return read_mix(mix)
    assert model is not None
    deadline_ms = options["deadline_ms"]
    entry = MixEntry(
        model,
        rows=options["rows"],
        deadline_s=None if deadline_ms is None else deadline_ms / 1e3,
        version=options["version"],
        label=options["label"],
        signature=options["signature"],
        priority=options["priority"],
        inputs=_inputs(options["inputs"]),
        shape=options["shape"],
    )
    return (entry,)


def _inputs(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        value = json.loads(Path(text[1:]).read_text() if text.startswith("@") else text)
    except OSError as error:
        raise ConfigurationError(f"the inputs' file {text[1:]}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigurationError(f"the inputs are no JSON: {error}") from None
    if not isinstance(value, dict):
        raise ConfigurationError("the inputs must be a JSON object of arrays by input name")
    return value


def _arrivals(
    *,
    concurrency: int | None,
    duration: float | None,
    find_rate: bool,
    rate: float | None,
    arrivals: str,
    ramp: tuple[float, float] | None,
    steps: tuple[tuple[float, float], ...] | None,
    trace: Path | None,
    **_: Any,
) -> Arrivals | None:
    ways: dict[str, Any] = {
        "--ramp": ramp,
        "--steps": steps,
        "--trace": trace,
        "--concurrency": concurrency,
    }
    given = [name for name, value in ways.items() if value is not None]
    given += [name for name, is_given in (("--find-rate", find_rate), ("--rate", rate)) if is_given]
    if len(given) != 1:
        raise click.UsageError(
            "needs exactly one of --rate, --ramp, --steps, --trace, --concurrency, --find-rate"
        )
    if rate is not None:
        return Constant(rate) if arrivals == "constant" else Poisson(rate)
    if ramp is not None:
        return Ramp(*ramp, duration or _DURATION_S)
    if steps is not None:
        return Steps(steps)
    if trace is not None:
        return Trace(str(trace.absolute()))
    # A search sets its own rates.
    return Poisson(1.0) if find_rate else None


def _natural_duration(arrivals: Arrivals | None) -> float:
    """How long a run lasts that is not told."""
    if isinstance(arrivals, Steps):
        return sum(seconds for seconds, _ in arrivals.steps)
    if isinstance(arrivals, Trace) and isinstance(arrivals.times, str):
        # The last arrival is part of it.
        return float(read_trace(Path(arrivals.times)).times[-1]) + 1e-6
    return _DURATION_S
