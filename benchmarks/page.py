"""Results as one HTML page that needs nothing else: a table, plots, what it ran on.

The plots are SVG whose text and lines take the page's colours, so that they can be read on a
dark screen and on a light one; everything that a plot shows is in the table too.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from typing import Any

from batchyard.benchmarks.plots import plots
from batchyard.benchmarks.results import Results
from batchyard.benchmarks.svg import Plot
from batchyard.benchmarks.table import HEADINGS, NUMBERS, cells

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1f; --paper: #fff; --line: #c8c8d0;
        --mark: #0b57d0; --good: #146c2e; --bad: #b3261e; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6ea; --paper: #16161a; --line: #4a4a55;
          --mark: #a8c7fa; --good: #6dd58c; --bad: #f2b8b5; }
}
body { font: 1rem/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; }
caption { text-align: left; padding-bottom: .5rem; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: left; }
th { font-weight: 600; }
tbody th { font-weight: 400; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.yes { color: var(--good); font-weight: 600; }
.no { color: var(--bad); font-weight: 600; }
figure { margin: 2rem 0; }
svg { max-width: 100%; height: auto; color: var(--ink); }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; }
dt { font-weight: 600; } dd { margin: 0; }
"""


def page(results: Results) -> str:
    """The whole page. Needs matplotlib."""
    title = html.escape(f"batchyard bench {results.name}")
    parts = [
        f"<h1>{title}</h1>",
        _table(results),
        *(figure(plot) for plot in plots(results)),
        *([definitions("Skipped", results.skipped)] if results.skipped else []),
        definitions("Settings", results.settings),
        definitions("Machine", results.machine),
    ]
    return document(title, parts)


def document(title: str, parts: Iterable[str], style: str = "") -> str:
    """A whole page of parts that are HTML, with a title that is, and more style of its own."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(parts)
        + "\n</main>\n</body>\n</html>\n"
    )


def _table(results: Results) -> str:
    heading = "".join(
        f'<th scope="col"{_number_class(name)}>{html.escape(name)}</th>' for name in HEADINGS
    )
    rows = "\n".join(f"<tr>{_row(texts)}</tr>" for texts in cells(results))
    caption = (
        "Medians and ranges of all rounds; a ratio is the median of the ratios to what was "
        "measured beside it in the same round, which is the line whose number it names."
    )
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="Figures">\n'
        f"<table>\n<caption>{caption}</caption>\n<thead><tr>{heading}</tr></thead>\n"
        f"<tbody>\n{rows}\n</tbody>\n</table>\n</div>"
    )


def _row(texts: tuple[str, ...]) -> str:
    return "".join(
        _cell(heading, html.escape(text)) for heading, text in zip(HEADINGS, texts, strict=True)
    )


def _cell(heading: str, text: str) -> str:
    if heading == "figure":
        return f'<th scope="row">{text}</th>'
    css = f' class="{text}"' if heading == "met" and text else _number_class(heading)
    return f"<td{css}>{text}</td>"


def _number_class(heading: str) -> str:
    return ' class="number"' if heading in NUMBERS else ""


def figure(plot: Plot) -> str:
    """A plot under its title."""
    return f"<figure>\n<figcaption>{html.escape(plot.title)}</figcaption>\n{plot.svg}\n</figure>"


def definitions(title: str, values: Mapping[str, Any]) -> str:
    """Names and what they stand for, under a heading."""
    items = "\n".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(str(value))}</dd>"
        for name, value in values.items()
    )
    return f"<h2>{title}</h2>\n<dl>\n{items}\n</dl>"
