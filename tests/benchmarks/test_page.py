"""Results as a page: whole, by itself, and readable without its plots."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from batchyard.benchmarks.page import page
from batchyard.benchmarks.results import Figure, Results

pytest.importorskip("matplotlib")
_VOID = {"meta", "br"}


class Reader(HTMLParser):
    """Takes a page apart; fails for tags that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
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
        if not self._open:
            return
        self.texts.setdefault(self._open[-1], []).append(data)
        if self._open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def test_table_is_a_table(results: Results) -> None:
    read = Reader(page(results))
    assert read.rows[0] == [
        *("#", "figure", "median", "range", "unit", "ratio", "to", "goal", "met")
    ]
    assert read.rows[2] == [
        *("2", "fast & good", "500", "300 – 900", "requests/s", "2.50", "#1", "≥ 2.00", "yes")
    ]
    assert len(read.rows) == 7
    assert [a.get("scope") for tag, a in read.attributes if tag == "th"].count("row") == 6


def test_page_says_what_it_ran_on_and_what_was_skipped(results: Results) -> None:
    read = Reader(page(results))
    named = dict(zip(read.texts["dt"], read.texts["dd"], strict=True))
    assert named["cpu"] == "an abacus <of wood>"
    assert named["in_flight"] == "256"
    assert named["gone"] == "is not installed"


def test_page_needs_nothing_else(results: Results) -> None:
    text = page(results)
    links = [
        value
        for _, attributes in Reader(text).attributes
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href") and value is not None
    ]
    assert all(value.startswith("#") for value in links)
    assert "@import" not in text
    assert "<script" not in text


def test_ids_are_unique_and_references_lead_to_them(results: Results) -> None:
    text = page(results)
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    for reference in re.findall(r'(?:url\(#|href="#)([^")]+)', text):
        assert reference in ids


def test_plots_are_described_and_take_the_pages_colours(results: Results) -> None:
    text = page(results)
    plots = [attributes for tag, attributes in Reader(text).attributes if tag == "svg"]
    # The ratios, and a plot for each of two units.
    assert len(plots) == 3
    for attributes in plots:
        assert attributes["role"] == "img"
        for name in ("aria-labelledby", "aria-describedby"):
            assert f'id="{attributes[name]}"' in text
    assert "fast &amp; good ÷ #1: 500 requests/s, ratio 2.50" in text
    drawn = text[text.index("<svg") : text.rindex("</svg>")]
    assert "currentColor" in drawn
    assert not re.search(r"#[0-9a-f]{6}\b", drawn)
    assert "<style" not in drawn


def test_page_of_values_alone() -> None:
    results = Results("x", {}, {}, [Figure("a", "a", "GB/s")], {"a": [1.0]})
    assert page(results).count("<svg") == 1


def test_page_is_the_same_again(results: Results) -> None:
    assert page(results) == page(results)
