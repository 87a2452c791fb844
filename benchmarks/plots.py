"""Plots of results as SVG, to stand inside an HTML page."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from batchyard.benchmarks.results import Results, Summary
from batchyard.benchmarks.svg import BAD, GOOD, INK, MARK, Plot, drawing, embedded
from batchyard.benchmarks.table import line_numbers, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Figures that differ by more are shown by powers of ten.
_LINEAR_SPAN = 20.0
_LEGEND = "A dot is a round, the bar their median, a diamond the goal."
_WIDTH_INCHES, _LINE_INCHES, _FRAME_INCHES = 10.0, 0.36, 1.1


def plots(results: Results) -> list[Plot]:
    """The ratios beside their goals, then every unit's figures on a scale of their own.

    Needs matplotlib.
    """
    summaries = results.summaries()
    lines = line_numbers(results)
    ratios = {
        f"{summary.figure.title} ÷ {lines[summary.figure.reference]}": summary
        for summary in summaries
        if summary.ratios
    }
    found = []
    if ratios:
        title = f"Ratios to the numbered line of the table, by round. {_LEGEND}"
        found.append(Plot(title, _svg("ratios", title, ratios, _draw_ratio)))
    for i, unit in enumerate(dict.fromkeys(summary.figure.unit for summary in summaries)):
        # A figure beside two references has one value all the same.
        values = {s.figure.title: s for s in summaries if s.figure.unit == unit}
        title = f"Values, in {unit}. {_LEGEND}"
        found.append(Plot(title, _svg(f"unit{i}", title, values, _draw_values)))
    return found


def _draw_ratio(axes: Axes, y: int, summary: Summary) -> None:
    _draw_line(axes, y, summary, summary.ratios, summary.figure.goal)


def _draw_values(axes: Axes, y: int, summary: Summary) -> None:
    goal = summary.figure.goal if summary.figure.reference is None else None
    _draw_line(axes, y, summary, summary.values, goal)


def _draw_line(
    axes: Axes, y: int, summary: Summary, values: Sequence[float], goal: float | None
) -> None:
    """A dot a round, a bar at the median, a diamond at the goal."""
    axes.plot(values, [y] * len(values), "o", color=MARK, markersize=4, alpha=0.6)
    colour = MARK if goal is None or summary.met is None else GOOD if summary.met else BAD
    axes.plot([statistics.median(values)], [y], "|", color=colour, markersize=16, markeredgewidth=3)
    if goal is not None:
        axes.plot([goal], [y], "D", color=INK, markersize=6, fillstyle="none")


def _svg(
    name: str,
    title: str,
    summaries: Mapping[str, Summary],
    draw: Callable[[Axes, int, Summary], None],
) -> str:
    # Imported here: everything but the page works without it.
    from matplotlib.figure import Figure

    with drawing(name):
        height = _LINE_INCHES * len(summaries) + _FRAME_INCHES
        figure = Figure(figsize=(_WIDTH_INCHES, height), layout="constrained")
        axes = figure.add_subplot()
        for y, summary in enumerate(summaries.values()):
            draw(axes, y, summary)
        axes.set_yticks(range(len(summaries)), list(summaries))
        axes.set_ylim(len(summaries) - 0.5, -0.5)
        _scale(axes)
        axes.grid(axis="x", color=INK, alpha=0.15)
        axes.spines[["top", "right"]].set_visible(False)
        return embedded(figure, name, title, _description(summaries))


def _scale(axes: Axes) -> None:
    """From zero where that leaves something to see, else by powers of ten."""
    low, high = axes.dataLim.intervalx
    if low > 0 and high / low > _LINEAR_SPAN:
        axes.set_xscale("log")
    else:
        axes.set_xlim(left=min(0, low))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")


def _description(summaries: Mapping[str, Summary]) -> str:
    return "; ".join(
        f"{label}: {number(summary.median)} {summary.figure.unit}"
        + ("" if summary.ratio is None else f", ratio {number(summary.ratio)}")
        for label, summary in summaries.items()
    )
