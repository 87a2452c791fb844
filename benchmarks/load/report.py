"""Load tests as one HTML page that needs nothing else, and the results back from such pages.

The page holds each result as JSON beside the plots, so that it can be compared with others later.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path

from batchyard.benchmarks.load import report_table
from batchyard.benchmarks.load.charts import draw
from batchyard.benchmarks.load.report_charts import charts
from batchyard.benchmarks.load.report_script import SCRIPT
from batchyard.benchmarks.load.result import LoadResult
from batchyard.benchmarks.load.search import Found, Trial
from batchyard.benchmarks.page import definitions, document
from batchyard.benchmarks.table import number

_EMBEDDED = "application/json"
_NUMBER = ' class="number"'
_STYLE = """
:root { --series-1: #0b57d0; --series-2: #c2500a; --series-3: #00796b; --series-4: #8e24aa;
        --series-5: #7a6a00; --series-6: #5d6d7e; }
@media (prefers-color-scheme: dark) {
  :root { --series-1: #8ab4f8; --series-2: #ffb077; --series-3: #7fd1c4; --series-4: #e1a8f0;
          --series-5: #d9d06b; --series-6: #b0bec5; }
}
.plots { display: grid; gap: 1.5rem 2rem; margin: 1.5rem 0;
         grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
.plots figure { margin: 0; }
.plots svg { width: 100%; touch-action: pan-y; }
figcaption { font-weight: 600; }
output { display: block; min-height: 2.6em; font-size: .85rem; font-variant-numeric: tabular-nums; }
.warning { border-left: .3rem solid var(--bad); padding: .2rem .8rem; }
@media (max-width: 40rem) { dl { grid-template-columns: 1fr; } th, td { padding: .25rem .4rem; } }
"""


def page(results: Mapping[str, LoadResult], found: Found | None = None) -> str:
    """The whole page, for one result or several, by the names that they go by.

    ``found`` is the search that they come from. Needs matplotlib.
    """
    if not results:
        raise ValueError("a report needs a result at least")
    names = ", ".join(results)
    title = html.escape(f"batchyard load: {names}")
    warnings = [text for name, r in results.items() for text in report_table.warnings(name, r)]
    parts = [
        f"<h1>{title}</h1>",
        *(f'<p class="warning">{html.escape(text)}</p>' for text in warnings),
        *([] if found is None else [_search(found)]),
        _figures(results),
        _plots(results),
        *(_models(name, r) for name, r in results.items() if len(r.by_model) > 1),
        *(
            definitions(f"What the errors said: {html.escape(name)}", r.error_messages)
            for name, r in results.items()
            if r.error_messages
        ),
        *_described("Plan", {name: report_table.plan(r.plan) for name, r in results.items()}),
        *_described("Machine", {name: r.machine for name, r in results.items()}),
        *(_embedded(name, result) for name, result in results.items()),
        f"<script>{SCRIPT}</script>",
    ]
    return document(title, parts, _STYLE)


def read(paths: Iterable[Path]) -> dict[str, LoadResult]:
    """Results out of JSON files and pages, by their files' names or those that pages give them.

    Raises ValueError for a file that holds none, OSError for one that cannot be read.
    """
    results: dict[str, LoadResult] = {}
    for path in paths:
        for name, result in _read(path).items():
            unique = name
            count = 1
            while unique in results:
                count += 1
                unique = f"{name} ({count})"
            results[unique] = result
    return results


def _read(path: Path) -> dict[str, LoadResult]:
    text = path.read_text()
    try:
        if not text.lstrip().startswith("<"):
            return {path.stem: LoadResult.from_json(json.loads(text))}
        embedded = _Embedded(text).found
        if not embedded:
            raise ValueError("is no page of `batchyard load --html`")
        # One result is known by its file, as that of a JSON file is.
        names = [path.stem] if len(embedded) == 1 else [name for name, _ in embedded]
        return {
            name: LoadResult.from_json(json.loads(content))
            for name, (_, content) in zip(names, embedded, strict=True)
        }
    except json.JSONDecodeError:
        raise ValueError(f"{path} is no result of `batchyard load --json` or --html") from None
    except ValueError as error:
        raise ValueError(f"{path} {error}") from None


class _Embedded(HTMLParser):
    """The results that a page holds, with their names."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []
        self._name: str | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """See HTMLParser."""
        values = dict(attrs)
        self._name = values.get("data-result") if tag == "script" else None

    def handle_data(self, data: str) -> None:
        """See HTMLParser."""
        if self._name is not None:
            self.found.append((self._name, data))
            self._name = None


def _embedded(name: str, result: LoadResult) -> str:
    # No name of a model may end the element.
    content = json.dumps(result.to_json()).replace("<", "\\u003c")
    return f'<script type="{_EMBEDDED}" data-result="{html.escape(name)}">{content}</script>'


def _figures(results: Mapping[str, LoadResult]) -> str:
    first, *others = results
    headings = ["figure", *results, *(f"{name} against {first}" for name in others), "unit"]
    lines = []
    for row in report_table.figures(results):
        cells = [f'<th scope="row">{html.escape(row.figure)}</th>']
        cells += [_number(text) for text in row.texts()]
        cells += [_number(text, judged) for text, judged in row.differences()]
        cells.append(f"<td>{row.unit}</td>")
        lines.append("".join(cells))
    caption = (
        "Goodput is what was answered within its deadline. Latency counts from the planned send "
        "time, for answers with outputs; send lag is how much later the generator sent."
    )
    return _table("Figures", caption, headings, lines)


def _models(name: str, result: LoadResult) -> str:
    headings, *rows = report_table.models(result)
    lines = [
        f'<th scope="row">{html.escape(model)}</th>' + "".join(_number(text) for text in texts)
        for model, *texts in rows
    ]
    return _table("By model", name, headings, lines)


def _search(found: Found) -> str:
    share = f"{100 * found.share:.4g} %"
    if found.rate:
        text = f"{number(found.rate)} requests a second keep {share} of them in time"
    else:
        text = f"No rate keeps {share} of the requests in time"
    text += f" (confidence {found.confidence:g}, tolerance {found.tolerance:g})."
    if found.offline_rate is not None and found.server_over_offline is not None:
        text += (
            f" With everything queued the server answers {number(found.offline_rate)} a second: "
            f"{found.server_over_offline:.3f} of that."
        )
    headings = ["rate", "seconds", "in time", "late", "passed", "why"]
    lines = []
    for trial in found.trials:
        passed = "yes" if trial.passed else "no"
        texts = (
            number(trial.rate),
            number(trial.seconds),
            f"{trial.in_time:,}",
            f"{trial.late:,}",
        )
        lines.append(
            "".join(_number(text) for text in texts)
            + f'<td class="{passed}">{passed}</td><td>{html.escape(_why(trial))}</td>'
        )
    return _table("Search", text, headings, lines)


def _why(trial: Trial) -> str:
    return f"{trial.why} (a long trial, to confirm)" if trial.confirms else trial.why


def _table(name: str, caption: str, headings: Sequence[str], lines: Iterable[str]) -> str:
    words = {"figure", "unit", "model", "passed", "why"}
    head = "".join(
        f'<th scope="col"{"" if heading in words else _NUMBER}>{html.escape(heading)}</th>'
        for heading in headings
    )
    rows = "\n".join(f"<tr>{line}</tr>" for line in lines)
    # The text stands outside of what scrolls, so that it is read in whole on a phone.
    return (
        f"<h2>{name}</h2>\n<p>{html.escape(caption)}</p>\n"
        f'<div class="wide" tabindex="0" role="region" aria-label="{name}">\n'
        f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>\n</div>"
    )


def _number(text: str, judged: str = "") -> str:
    return f'<td class="{f"number {judged}".rstrip()}">{html.escape(text)}</td>'


def _plots(results: Mapping[str, LoadResult]) -> str:
    figures = []
    for chart in charts(results):
        drawn = draw(chart)
        figures.append(
            f'<figure data-points="{html.escape(drawn.points)}">\n'
            f"<figcaption>{html.escape(drawn.plot.title)}</figcaption>\n{drawn.plot.svg}\n"
            '<output aria-hidden="true"></output>\n</figure>'
        )
    return '<div class="plots">\n' + "\n".join(figures) + "\n</div>"


def _described(title: str, by_name: Mapping[str, Mapping[str, object]]) -> list[str]:
    """Lists of names and values; one where they are the same for all."""
    values = list(by_name.values())
    if all(value == values[0] for value in values):
        return [definitions(title, values[0])]
    return [definitions(f"{title}: {html.escape(name)}", value) for name, value in by_name.items()]
