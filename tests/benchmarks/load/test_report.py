"""The report: a page by itself, from which its results can be read again."""

from __future__ import annotations

import functools
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from support.load_results import made_up

from batchyard.benchmarks.load.plan import Ramp, Steps, Trace
from batchyard.benchmarks.load.report import page, read
from batchyard.benchmarks.load.report_charts import charts, quantile_curve, thinned
from batchyard.benchmarks.load.report_table import figures, plan
from batchyard.benchmarks.load.search import Found, Trial

pytest.importorskip("matplotlib")
_VOID = {"meta", "br"}
CALM = made_up(seconds=5.0)
HOSTILE = "a </script><b>&"
OVER = made_up(seconds=5.0, rate=800.0, seed=2, models=(HOSTILE,))


@functools.cache
def page_of_both() -> str:
    return page({HOSTILE: CALM, "over": OVER})


@functools.cache
def page_of_one() -> str:
    return page({"calm": CALM})


class Reader(HTMLParser):
    """Takes a page apart; fails for tags that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("script", "style"):
            self.words.append(data)
        if self._open and self._open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def test_page_needs_nothing_else_and_stays_small() -> None:
    text = page_of_both()
    read_page = Reader(text)
    links = [
        value
        for _, attributes in read_page.attributes
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href") and value is not None
    ]
    assert all(value.startswith("#") for value in links)
    assert "@import" not in text
    assert not re.search(r"https?://(?!www\.w3\.org)", text)
    assert len(text) < 1_000_000
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    for reference in re.findall(r'(?:url\(#|href="#)([^")]+)', text):
        assert reference in ids


def test_plots_take_the_pages_colours_and_are_described() -> None:
    text = page_of_both()
    plots = [a for tag, a in Reader(text).attributes if tag == "svg"]
    assert len(plots) == 7
    assert all(a["role"] == "img" for a in plots)
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        assert not re.search(r"#[0-9a-f]{6}\b", svg)
        assert "var(--series-1)" in svg
    assert "over: goodput" in text


def test_each_figure_has_its_points() -> None:
    found = [a for tag, a in Reader(page_of_one()).attributes if tag == "figure"]
    for attributes in found:
        points = json.loads(attributes["data-points"] or "")
        left, top, right, bottom = points["box"]
        assert 0 < left < right <= 361
        assert 0 < top < bottom < 300
        assert points["lines"]
        for line in points["lines"]:
            assert len(line["x"]) == len(line["y"])


def test_two_results_and_how_they_differ() -> None:
    rows = {row[0]: row for row in Reader(page_of_both()).rows}
    assert rows["figure"] == ["figure", HOSTILE, "over", f"over against {HOSTILE}", "unit"]
    goodput = rows["goodput"]
    assert goodput[1] == f"{CALM.goodput:,.0f}"
    assert goodput[3] == f"{OVER.goodput / CALM.goodput - 1:+.1%}"
    assert rows["DEADLINE_EXCEEDED"][1:4] == [
        "0",
        f"{OVER.errors['DEADLINE_EXCEEDED']:,}",
        f"+{OVER.errors['DEADLINE_EXCEEDED']:,}",
    ]


def test_better_and_worse() -> None:
    rows = {row.figure: row for row in figures({"a": CALM, "b": OVER, "c": CALM})}
    assert [judged for _, judged in rows["latency p99"].differences()] == ["no", ""]
    assert rows["latency p99"].differences()[1][0] == "="
    assert [judged for _, judged in rows["offered"].differences()] == ["", ""]


def test_warnings_stand_first() -> None:
    words = Reader(page_of_both()).words
    assert "over is not stable: its queue grows." in words
    assert "the queue is <too> long" in words
    assert "is not stable" not in page_of_one()


def test_other_servers_tell_less() -> None:
    other = made_up(seconds=2.0, tells=False, deadline_s=None, models=("a", "b"))
    assert [chart.name for chart in charts({"other": other})] == ["latency", "quantiles", "goodput"]
    rows = [row[0] for row in Reader(page({"other": other})).rows]
    assert "a" in rows
    assert "b" in rows


def test_results_come_back_from_pages_and_files(tmp_path: Path) -> None:
    both = tmp_path / "both.html"
    both.write_text(page_of_both())
    one = tmp_path / "one.html"
    one.write_text(page_of_one())
    file = tmp_path / "over.json"
    file.write_text(json.dumps(OVER.to_json()))
    found = read([both, one, file])
    assert list(found) == [HOSTILE, "over", "one", "over (2)"]
    assert [result.to_json() for result in found.values()] == [
        *(CALM.to_json(), OVER.to_json(), CALM.to_json(), OVER.to_json())
    ]


@pytest.mark.parametrize("text", ["", "{}", "[1]", "<html></html>", "<script data-result='x'>{}"])
def test_files_without_results(tmp_path: Path, text: str) -> None:
    path = tmp_path / "wrong.html"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"wrong\.html"):
        read([path])


def test_a_search_is_told() -> None:
    trials = [
        Trial(400.0, 0, 5000, 0, 5.0, True, "100.00% in time"),
        Trial(800.0, 1, 400, 100, 0.5, False, "only 80.00% in time"),
    ]
    found = Found(400.0, 800.0, 0.99, 0.99, 0.02, trials, {64: 500.0})
    words = " ".join(Reader(page({"calm": CALM}, found)).words)
    assert "400 requests a second keep 99 % of them in time" in words
    assert "0.800 of that" in words
    none = " ".join(Reader(page({"calm": CALM}, replace(found, rate=0.0))).words)
    assert "No rate keeps 99 % of the requests in time" in none


def test_quantiles_go_as_far_as_there_are_answers() -> None:
    x, y = quantile_curve(CALM.latency)
    assert x[0] == 1
    assert x[-1] == CALM.latency.count
    assert y == sorted(y)
    assert y[-1] == pytest.approx(CALM.latency.max * 1e3, rel=0.002)


def test_long_runs_are_thinned_without_losing_anything() -> None:
    long = made_up(seconds=300.0, rate=40.0)
    few = thinned(long.intervals)
    assert len(few) <= 400
    assert sum(interval.in_time for interval in few) == long.in_time
    assert max(i.p99_s or 0 for i in few) == max(i.p99_s or 0 for i in long.intervals)
    assert thinned(CALM.intervals) == CALM.intervals


def test_plans_in_words() -> None:
    said = plan(CALM.plan)
    assert said["requests"] == "resnet, 1 row, deadline 100 ms"
    assert said["arrivals"] == "open loop, poisson at 400/s"
    for arrivals, text in (
        (Ramp(10, 20, 5), "a ramp from 10 to 20/s in 5 s"),
        (Steps(((5, 10), (5, 20))), "steps of 5 s at 10/s, 5 s at 20/s"),
        (Trace((0.0, 1.0)), "a trace of 2 requests"),
        (Trace("a.txt"), "a trace of a.txt"),
    ):
        assert plan(replace(CALM.plan, arrivals=arrivals))["arrivals"] == f"open loop, {text}"
    closed = replace(CALM.plan, arrivals=None, concurrency=8)
    assert plan(closed)["arrivals"] == "closed loop, 8 callers"
