"""A tuning as one HTML page that needs nothing else: the choices, why, and a plot of each."""

from __future__ import annotations

import html
from collections.abc import Iterator
from typing import TYPE_CHECKING

from batchyard.benchmarks.machine import describe
from batchyard.benchmarks.page import definitions, document, figure
from batchyard.benchmarks.svg import GOOD, INK, MARK, SERIES, Plot, drawing, embedded
from batchyard.benchmarks.table import number
from batchyard.benchmarks.tuning import results
from batchyard.benchmarks.tuning.bench import Deadline, Load
from batchyard.benchmarks.tuning.curve import Curve
from batchyard.benchmarks.tuning.lab import described
from batchyard.benchmarks.tuning.procedure import Tuning
from batchyard.benchmarks.tuning.tuner import Choice

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STYLE = """
:root { --series-1: #0b57d0; --series-2: #c2500a; --series-3: #00796b; --series-4: #8e24aa; }
@media (prefers-color-scheme: dark) {
  :root { --series-1: #8ab4f8; --series-2: #ffb077; --series-3: #7fd1c4; --series-4: #e1a8f0; }
}
td.why { min-width: 22rem; }
"""
_WIDTH_INCHES, _BAR_INCHES, _FRAME_INCHES = 10.0, 0.4, 1.0
_CURVES_INCHES = 4.0


def page(tuning: Tuning, model: str) -> str:
    """The whole page. Needs matplotlib."""
    title = html.escape(f"batchyard tune {model}")
    found = f"The goal: {tuning.goal}. {results.verified(tuning)}"
    parts = [
        f"<h1>{title}</h1>",
        f"<p>{html.escape(found)}</p>",
        *(f"<p>{html.escape(note)}</p>" for note in tuning.notes),
        _choices(tuning),
        *(figure(plot) for plot in _plots(tuning)),
        _experiments(tuning),
        definitions("Machine", describe()),
    ]
    return document(title, parts, _STYLE)


def _choices(tuning: Tuning) -> str:
    rows = "\n".join(
        f'<tr><th scope="row">{name}</th><td>{html.escape(value)}</td>'
        f'<td>{html.escape(before)}</td><td class="why">{html.escape(why)}</td></tr>'
        for name, value, before, why in results.rows(tuning)
    )
    return _table("What was chosen", ["parameter", "value", "before", "why"], rows)


def _experiments(tuning: Tuning) -> str:
    rows = "\n".join(
        f'<tr><th scope="row">{html.escape(experiment.step)}</th>'
        f"<td>{html.escape(described(experiment.load.setting))}</td>{_cells(experiment.load)}</tr>"
        for experiment in tuning.experiments
    )
    headings = ["for", "setting", "offered/s", "in time", "mean ms", "p99 ms", "rows a batch"]
    return _table("Every load test, in order", headings, rows)


def _cells(load: Load) -> str:
    texts = [
        f"{number(load.answered_rate)} answered" if load.rate is None else number(load.rate),
        f"{100 * load.in_time_share:.1f} %",
        number(1e3 * load.mean_s),
        number(1e3 * load.p99_s),
        "" if load.batch_rows is None else number(load.batch_rows),
    ]
    return "".join(f'<td class="number">{text}</td>' for text in texts)


def _table(caption: str, headings: list[str], rows: str) -> str:
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in headings)
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{html.escape(caption)}">\n'
        f"<table>\n<caption>{html.escape(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{rows}\n</tbody>\n</table>\n</div>"
    )


def _plots(tuning: Tuning) -> Iterator[Plot]:
    yield _execution_times(tuning)
    for choice in tuning.choices:
        if any(verdict.load is not None for verdict in choice.verdicts):
            yield _alternatives(tuning, choice)
    found = tuning.verification
    bars = [("chosen", found.rate, "", True), ("before", found.before_rate, "", False)]
    yield _bars("verification", "Verified: requests a second", bars)


def _execution_times(tuning: Tuning) -> Plot:
    """The time of a batch, and what that makes a second, by its rows."""
    from matplotlib.figure import Figure

    title = "How long a batch takes by its rows, and rows a second of one batch thread"
    chosen = tuning.setting.max_batch_size
    with drawing("execution"):
        drawn = Figure(figsize=(_WIDTH_INCHES, _CURVES_INCHES), layout="constrained")
        times, rates = drawn.subplots(1, 2)
        for colour, (name, curve) in zip(SERIES, tuning.curves, strict=False):
            seconds = [1e3 * curve.seconds(rows) for rows in curve.sizes]
            times.plot(curve.sizes, seconds, "o-", color=colour, label=name, markersize=4)
            made = [curve.rows_per_s(rows) for rows in curve.sizes]
            rates.plot(curve.sizes, made, "o-", color=colour, label=name, markersize=4)
        if isinstance(tuning.goal, Deadline):
            deadline_ms = 1e3 * tuning.goal.deadline_s
            times.axhline(deadline_ms, color=INK, linestyle=":", label=f"deadline {deadline_ms:g}")
        for axes, unit in ((times, "ms a batch"), (rates, "rows/s")):
            axes.axvline(chosen, color=INK, linewidth=1, linestyle="--", label=f"chosen {chosen}")
            _logarithmic(axes)
            axes.set_ylabel(unit)
            axes.set_xlabel("rows")
        times.legend(frameon=False)
        text = "; ".join(
            f"{name}: "
            + ", ".join(
                f"{rows} rows {number(1e3 * curve.seconds(rows))} ms" for rows in curve.sizes
            )
            for name, curve in tuning.curves
        )
        return Plot(title, embedded(drawn, "execution", title, text))


def _in_words(curve: Curve) -> str:
    return ", ".join(f"{rows} rows {number(1e3 * curve.seconds(rows))} ms" for rows in curve.sizes)


def _logarithmic(axes: Axes) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:,g}")
        axis.set_minor_formatter(lambda value, _: "")
    axes.grid(color=INK, alpha=0.15)
    axes.spines[["top", "right"]].set_visible(False)


def _alternatives(tuning: Tuning, choice: Choice) -> Plot:
    bars = [
        (_name(choice, i), verdict.score, verdict.words, verdict.won)
        for i, verdict in enumerate(choice.verdicts)
        if verdict.load is not None
    ]
    what = "in time a second" if isinstance(tuning.goal, Deadline) else "requests a second"
    return _bars(choice.key, f"{choice.key}: what was tried in turn, {what}", bars)


def _name(choice: Choice, i: int) -> str:
    """What the alternative differs in."""
    setting = choice.verdicts[i].setting
    match choice.key:
        case "max_batch_size":
            return f"{setting.max_batch_size}"
        case "batch_timeout_micros":
            return f"{setting.batch_timeout_micros / 1e3:g} ms"
        case "max_enqueued_batches":
            return f"{setting.max_enqueued_batches} waiting"
        case "allowed_batch_sizes":
            return "powers of two" if setting.allowed_batch_sizes else "all"
    return f"{setting.placement}, {setting.threads} at once"


def _bars(name: str, title: str, bars: list[tuple[str, float, str, bool]]) -> Plot:
    """A bar for each: its name, its length, what is said of it, and whether it won."""
    from matplotlib.figure import Figure

    with drawing(name):
        height = _BAR_INCHES * len(bars) + _FRAME_INCHES
        drawn = Figure(figsize=(_WIDTH_INCHES, height), layout="constrained")
        axes = drawn.add_subplot()
        for y, (_, length, words, won) in enumerate(bars):
            axes.barh(y, length, color=GOOD if won else MARK, alpha=0.5, height=0.7)
            axes.text(0, y, f"  {words or number(length)}", va="center")
        axes.set_yticks(range(len(bars)), [bar[0] for bar in bars])
        axes.set_ylim(len(bars) - 0.5, -0.5)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        axes.grid(axis="x", color=INK, alpha=0.15)
        axes.spines[["top", "right"]].set_visible(False)
        text = "; ".join(f"{label}: {words or number(length)}" for label, length, words, _ in bars)
        return Plot(title, embedded(drawn, name, title, text))
