"""Line charts of load tests as SVG, with their points beside them for whoever points at one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from batchyard.benchmarks.svg import INK, Plot, drawing, embedded

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Two charts stand beside each other on a desk, one fits a phone with its text still readable.
_WIDTH_INCHES, _HEIGHT_INCHES, _LEGEND_LINE_INCHES = 5.0, 2.9, 0.22
_FONT_POINTS = 10.5
# SVG's own unit: positions in the drawing are positions in the page.
_DPI = 72
# Figures that differ by more are shown by powers of ten.
_LINEAR_SPAN = 30.0
# Fewer points than these are marked, so that one alone is seen.
_MARKED = 60
_DIGITS = 4


@dataclass(frozen=True, slots=True)
class Line:
    """Points in order; None is a gap."""

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    colour: str = INK
    style: str = "-"
    width: float = 1.6


@dataclass(frozen=True, slots=True)
class Chart:
    """Lines over one axis, and what is said about them."""

    name: str
    """Unique in the page."""
    title: str
    x_label: str
    unit: str
    lines: list[Line]
    description: str = ""
    x_ticks: dict[float, str] = field(default_factory=dict)
    """Where the axis is one of powers of ten, with texts of its own."""
    marked: bool = False
    """Each point is an observation of its own."""

    @property
    def empty(self) -> bool:
        """Whether there is nothing to see."""
        return not any(value is not None for line in self.lines for value in line.y)


@dataclass(frozen=True, slots=True)
class Drawn:
    """A chart's plot, and its points as JSON: where the axis lies and what each line holds."""

    plot: Plot
    points: str


def draw(chart: Chart) -> Drawn:
    """Needs matplotlib."""
    # Imported here: everything but the page works without it.
    from matplotlib.figure import Figure

    with drawing(chart.name, _FONT_POINTS):
        height = _HEIGHT_INCHES + _LEGEND_LINE_INCHES * len(chart.lines) / 2
        figure = Figure(figsize=(_WIDTH_INCHES, height), dpi=_DPI, layout="constrained")
        axes = figure.add_subplot()
        for line in chart.lines:
            _draw_line(axes, line, chart.marked)
        _scale(axes, chart)
        axes.set_xlabel(chart.x_label)
        axes.set_ylabel(chart.unit)
        axes.grid(color=INK, alpha=0.15)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside lower left", ncols=2, frameon=False)
        svg = embedded(figure, chart.name, chart.title, chart.description)
        return Drawn(Plot(chart.title, svg), json.dumps(_points(axes, chart, height)))


def _draw_line(axes: Axes, line: Line, marked: bool) -> None:
    axes.plot(
        line.x,
        [float("nan") if value is None else value for value in line.y],
        line.style,
        label=line.label,
        color=line.colour,
        linewidth=line.width / 2 if marked else line.width,
        marker="o" if marked or (2 < len(line.x) <= _MARKED and line.style == "-") else "",
        markersize=4 if marked else 2.5,
    )


def _scale(axes: Axes, chart: Chart) -> None:
    from matplotlib.ticker import NullLocator

    values = [v for line in chart.lines for v in line.y if v is not None and v > 0]
    zeros = any(v == 0 for line in chart.lines for v in line.y)
    if not chart.marked and values and not zeros and max(values) / min(values) > _LINEAR_SPAN:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    if chart.x_ticks:
        axes.set_xscale("log")
        axes.set_xticks(list(chart.x_ticks), list(chart.x_ticks.values()))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")


def _points(axes: Axes, chart: Chart, height: float) -> dict[str, Any]:
    box = axes.get_window_extent()
    low, high = axes.get_xlim()
    bottom = height * _DPI
    return {
        "box": [round(v, 1) for v in (box.x0, bottom - box.y1, box.x1, bottom - box.y0)],
        "x": [low, high],
        "quantiles": bool(chart.x_ticks),
        "xLabel": chart.x_label,
        "unit": chart.unit,
        "lines": [
            {
                "label": line.label,
                "x": [_rounded(value) for value in line.x],
                "y": [None if value is None else _rounded(value) for value in line.y],
            }
            for line in chart.lines
            # What is the same everywhere is said by the legend.
            if len(line.x) > 2
        ],
    }


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
