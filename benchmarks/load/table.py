"""One result as text: what a person reads in a terminal when a run is over."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from batchyard.benchmarks.load.histogram import Histogram
from batchyard.benchmarks.load.plan import (
    Arrivals,
    Constant,
    LoadPlan,
    Poisson,
    Ramp,
    Steps,
    Trace,
)
from batchyard.benchmarks.load.result import LoadResult
from batchyard.benchmarks.load.search import Found, Trial
from batchyard.benchmarks.table import number

_QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}


def table(result: LoadResult) -> RenderableType:
    """What was planned, what came of it, how long it took, and whether to believe it."""
    parts: list[RenderableType] = [Text(describe(result.plan)), _outcomes(result), _times(result)]
    parts += [Text(f"{code}: {text}") for code, text in result.error_messages.items()]
    batches = sum(result.batch_rows.values())
    if batches:
        rows = sum(rows * count for rows, count in result.batch_rows.items())
        parts.append(Text(f"batches: {batches:,} of {rows / batches:.1f} rows on average"))
    if not result.stable:
        parts.append(Text(f"These figures are not to be trusted: {result.why_unstable}.", "bold"))
    return Group(*parts)


def search(found: Found) -> RenderableType:
    """What was tried in a search, and what it came to."""
    tried = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("tried per second", "in time", "seconds", ""):
        tried.add_column(heading, justify="right" if heading else "left")
    for trial in found.trials:
        share = trial.in_time / max(trial.in_time + trial.late, 1)
        tried.add_row(number(trial.rate), f"{share:.2%}", number(trial.seconds), _verdict(trial))
    lines = [f"highest rate with {found.share:.0%} in time: {number(found.rate)}/s"]
    if not found.rate:
        lines = [f"no rate that was tried has {found.share:.0%} in time"]
    if found.offline_rate is not None:
        lines.append(f"offline, everything queued: {number(found.offline_rate)}/s")
    if found.rate and found.server_over_offline is not None:
        lines.append(f"server ÷ offline: {number(found.server_over_offline)}")
    return Group(tried, *map(Text, lines))


def describe_trial(trial: Trial) -> str:
    """A trial in a line, when it is over."""
    return f"{number(trial.rate)}/s: {_verdict(trial)}"


def _verdict(trial: Trial) -> str:
    return f"{'passed' if trial.passed else 'failed'}: {trial.why}"


def describe(plan: LoadPlan) -> str:
    """A plan in a line."""
    models = ", ".join(dict.fromkeys(entry.model for entry in plan.mix))
    if plan.arrivals is None:
        what = f"{plan.concurrency} callers (closed loop)"
    else:
        what = f"{_arrivals(plan.arrivals)} (open loop)"
    warmup = f" after {plan.warmup_s:g} s of warm-up" if plan.warmup_s else ""
    processes = f", {plan.processes} processes" if plan.processes > 1 else ""
    target = f" at {plan.target}" if plan.target else ""
    return f"{models}{target}: {what}, {plan.duration_s:g} s{warmup}{processes}, seed {plan.seed}"


def _arrivals(arrivals: Arrivals) -> str:
    if isinstance(arrivals, Poisson):
        return f"{arrivals.rate:g}/s, Poisson"
    if isinstance(arrivals, Constant):
        return f"{arrivals.rate:g}/s, evenly"
    if isinstance(arrivals, Ramp):
        return f"from {arrivals.from_rate:g}/s to {arrivals.to_rate:g}/s, Poisson"
    if isinstance(arrivals, Steps):
        steps = ", ".join(f"{rate:g}/s for {seconds:g} s" for seconds, rate in arrivals.steps)
        return f"{steps}, Poisson"
    assert isinstance(arrivals, Trace)
    if isinstance(arrivals.times, str):
        return f"trace {arrivals.times}"
    return f"trace of {len(arrivals.times)}"


def _outcomes(result: LoadResult) -> Table:
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("", "requests", "share", "per second"):
        shown.add_column(heading, justify="left" if not heading else "right")
    has_deadline = result.plan.deadline_s is not None
    in_time = "in time" if has_deadline else "answered"
    lines = [("planned", result.planned), ("sent", result.sent), (in_time, result.in_time)]
    if has_deadline:
        lines.append(("late", result.late))
    lines += sorted(result.errors.items())
    if result.unanswered:
        lines.append(("unanswered", result.unanswered))
    _add_counts(shown, lines, result)
    if len(result.by_model) > 1:
        for model, counts in result.by_model.items():
            for key, name in (("planned", "planned"), ("in_time", in_time)):
                _add_counts(shown, [(f"{model}: {name}", counts[key])], result)
    return shown


def _add_counts(shown: Table, lines: list[tuple[str, int]], result: LoadResult) -> None:
    for name, count in lines:
        share = count / result.planned if result.planned else 0.0
        shown.add_row(name, f"{count:,}", f"{share:.2%}", number(count / result.duration_s))


def _times(result: LoadResult) -> Table:
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("milliseconds", "mean", *_QUANTILES, "max"):
        shown.add_column(heading, justify="left" if heading == "milliseconds" else "right")
    _add_times(shown, "latency", result.latency)
    if result.plan.arrivals is not None:
        _add_times(shown, "send lag", result.send_lag)
    return shown


def _add_times(shown: Table, name: str, histogram: Histogram) -> None:
    if not histogram.count:
        return
    seconds = [histogram.mean, *map(histogram.quantile, _QUANTILES.values()), histogram.max]
    shown.add_row(name, *(number(value * 1e3) for value in seconds))
