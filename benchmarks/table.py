"""Results as text: what a person reads in a terminal."""

from __future__ import annotations

from typing import Any

from batchyard.benchmarks.results import Results, Summary

HEADINGS = ("#", "figure", "median", "range", "unit", "ratio", "to", "goal", "met")
# Those that hold numbers, which stand to the right.
NUMBERS = frozenset(("#", "median", "range", "ratio", "goal"))


def table(results: Results) -> str:
    """A line a figure, then what was skipped, the settings, the machine and its versions."""
    rows = [HEADINGS, *cells(results)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADINGS))]
    lines = [_line(row, widths) for row in rows]
    lines.insert(1, "-" * len(lines[0]))
    lines += [f"skipped {name}: {reason}" for name, reason in results.skipped.items()]
    if results.settings:
        lines.append(f"settings: {pairs(results.settings)}")
    lines.append(f"machine: {pairs(results.machine)}")
    return "\n".join(line.rstrip() for line in lines)


def cells(results: Results) -> list[tuple[str, ...]]:
    """Every figure's texts, in the order of ``HEADINGS``; lines are known by their numbers."""
    lines = line_numbers(results)
    return [
        (str(i), *_texts(summary), lines.get(summary.figure.reference, ""), *_goal(summary))
        for i, summary in enumerate(results.summaries(), 1)
    ]


def line_numbers(results: Results) -> dict[str | None, str]:
    """What a key's first line is called where another names it as its reference."""
    lines: dict[str | None, str] = {}
    for i, summary in enumerate(results.summaries(), 1):
        lines.setdefault(summary.figure.key, f"#{i}")
    return lines


def _texts(summary: Summary) -> tuple[str, ...]:
    return (
        summary.figure.title,
        number(summary.median),
        f"{number(min(summary.values))} – {number(max(summary.values))}",
        summary.figure.unit,
        "" if summary.ratio is None else number(summary.ratio),
    )


def _goal(summary: Summary) -> tuple[str, str]:
    figure = summary.figure
    if figure.goal is None:
        return "", ""
    goal = f"{'≤' if figure.lower_is_better else '≥'} {number(figure.goal)}"
    return goal, {True: "yes", False: "no", None: ""}[summary.met]


def number(value: float) -> str:
    """Three digits that count, and no fraction from a hundred on."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if abs(value) >= 0.1 or value == 0 else f"{value:.2g}"


def pairs(values: dict[str, Any]) -> str:
    """``name value, name value``."""
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    aligned = [
        text.rjust(width) if heading in NUMBERS else text.ljust(width)
        for text, width, heading in zip(row, widths, HEADINGS, strict=True)
    ]
    return "  ".join(aligned)
