"""The figures of load tests side by side, as texts, and how they differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from batchyard.benchmarks.load.plan import LoadPlan, MixEntry
from batchyard.benchmarks.load.report_charts import mean_batch_rows
from batchyard.benchmarks.load.result import LoadResult
from batchyard.benchmarks.table import number

_COUNTED = ("requests", "batches")
_QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of every result; None where a result has none."""

    figure: str
    unit: str
    values: list[float | None]
    better: int = 0
    """1: more is better; -1: less is; 0: neither."""

    def texts(self) -> list[str]:
        """The values."""
        return ["–" if value is None else self._text(value) for value in self.values]

    def differences(self) -> list[tuple[str, str]]:
        """Each value but the first against the first: a text, and ``yes`` or ``no`` for a better
        or a worse one by more than a hundredth."""
        first, *others = self.values
        return [self._difference(first, value) for value in others]

    def _text(self, value: float) -> str:
        return f"{value:,.0f}" if self.unit in _COUNTED else number(value)

    def _difference(self, first: float | None, value: float | None) -> tuple[str, str]:
        if first is None or value is None or first == value:
            return ("–" if first is None or value is None else "="), ""
        if first == 0:
            return f"+{self._text(value)}", _judged(value * self.better) if self.better else ""
        change = value / first - 1
        # What has doubled is said as a factor.
        text = f"× {number(value / first)}" if value >= 2 * first else f"{change:+.1%}"
        notable = self.better and abs(change) > 0.01
        return text, _judged(change * self.better) if notable else ""


def figures(results: Mapping[str, LoadResult]) -> list[Row]:
    """All figures that any of the results has."""
    found = list(results.values())

    def row(
        figure: str, unit: str, value: Callable[[LoadResult], float | None], better: int = 0
    ) -> Row:
        return Row(figure, unit, [value(result) for result in found], better)

    rows = [
        row("offered", "requests/s", lambda r: r.offered_rate),
        row("goodput", "requests/s", lambda r: r.goodput, 1),
        row("share in time", "%", lambda r: 100 * r.in_time_share, 1),
        row("planned", "requests", lambda r: r.planned),
        row("in time", "requests", lambda r: r.in_time, 1),
        row("late", "requests", lambda r: r.late, -1),
    ]
    for code in sorted({code for result in found for code in result.errors}):
        rows.append(row(code, "requests", _errors(code), -1))
    rows.append(row("unanswered", "requests", lambda r: r.unanswered, -1))
    rows += [row(f"latency {name}", "ms", _latency(q), -1) for name, q in _QUANTILES.items()]
    rows += [
        row("latency max", "ms", lambda r: r.latency.max * 1e3 if r.latency.count else None, -1),
        row("latency mean", "ms", lambda r: r.latency.mean * 1e3 if r.latency.count else None, -1),
        row("send lag p99", "ms", lambda r: r.send_lag.quantile(0.99) * 1e3, -1),
        row("batches", "batches", lambda r: sum(r.batch_rows.values()) or None),
        row("rows of a batch, mean", "rows", mean_batch_rows),
    ]
    return [row for row in rows if any(value is not None for value in row.values)]


def models(result: LoadResult) -> list[list[str]]:
    """Headings, and a line for each model."""
    lines = [["model", "planned", "in time", "late", "failed", "unanswered", "p50 ms", "p99 ms"]]
    for model, counts in sorted(result.by_model.items()):
        kinds = [counts[key] for key in ("planned", "in_time", "late")]
        kinds += [sum(counts["errors"].values()), counts["unanswered"]]
        texts = [f"{count:,}" for count in kinds]
        for key in ("p50_s", "p99_s"):
            texts.append("–" if counts.get(key) is None else number(counts[key] * 1e3))
        lines.append([model, *texts])
    return lines


def plan(of: LoadPlan) -> dict[str, Any]:
    """What was sent, in words."""
    if of.arrivals is None:
        arrivals = f"closed loop, {of.concurrency} callers"
    else:
        arrivals = f"open loop, {_arrivals(of)}"
    return {
        "target": of.target or "the SDK's default",
        "requests": "; ".join(_entry(entry, len(of.mix) > 1) for entry in of.mix),
        "arrivals": arrivals,
        "duration": f"{of.duration_s:g} s after {of.warmup_s:g} s of warm-up",
        "generators": f"{of.processes}, seed {of.seed}",
    }


def warnings(name: str, result: LoadResult) -> list[str]:
    """What keeps a result from meaning what it seems to."""
    return [] if result.stable else [f"{name} is not stable: {result.why_unstable}."]


def _entry(entry: MixEntry, weighted: bool) -> str:
    text = entry.model
    if entry.version is not None:
        text += f" version {entry.version}"
    if entry.label is not None:
        text += f" label {entry.label}"
    text += f", {entry.rows} row{'s' * (entry.rows > 1)}"
    if entry.deadline_s is not None:
        text += f", deadline {number(entry.deadline_s * 1e3)} ms"
    if entry.priority:
        text += f", priority {entry.priority}"
    return f"{text}, weight {entry.weight:g}" if weighted else text


def _arrivals(of: LoadPlan) -> str:
    values = of.to_json()["arrivals"]
    match values.pop("kind"):
        case "poisson" | "constant" as kind:
            return f"{kind} at {values['rate']:g}/s"
        case "ramp":
            return (
                f"a ramp from {values['from_rate']:g} to {values['to_rate']:g}/s in "
                f"{values['seconds']:g} s"
            )
        case "steps":
            return "steps of " + ", ".join(f"{s:g} s at {rate:g}/s" for s, rate in values["steps"])
        case _:
            times = values["times"]
            where = times if isinstance(times, str) else f"{len(times)} requests"
            return f"a trace of {where}"


def _errors(code: str) -> Callable[[LoadResult], float]:
    return lambda result: result.errors.get(code, 0)


def _latency(q: float) -> Callable[[LoadResult], float | None]:
    return lambda result: result.latency.quantile(q) * 1e3 if result.latency.count else None


def _judged(gain: float) -> str:
    return "yes" if gain > 0 else "no"
