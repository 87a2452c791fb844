"""The live view of a load test."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from batchyard.benchmarks.load.progress import LiveView, rendered, texts
from batchyard.benchmarks.load.result import Interval, Progress

RECENT = Interval(9.75, 100, 90, 2, {"UNAVAILABLE": 3}, 0.0123, 0.0456, 7.0, 12.5)
PROGRESS = Progress(10.0, 30.0, 4000, 3900, 20, {"UNAVAILABLE": 30}, 50, RECENT, 0.0002)


def console(terminal: bool, width: int = 120) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=width)


def shown(view_console: Console) -> str:
    assert isinstance(view_console.file, io.StringIO)
    return view_console.file.getvalue()


def test_figures() -> None:
    assert texts(PROGRESS) == {
        "elapsed": "10/30 s",
        "offered/s": "400",
        "in time/s": "390",
        "in time": "98.73%",
        "in flight": "50",
        "p50": "12.3 ms",
        "p99": "45.6 ms",
        "late": "20",
        "errors": "30",
        "send lag": "0.20 ms",
        "queue": "7",
    }


def test_before_there_is_anything() -> None:
    warming = Progress(-1.4, 30.0, 0, 0, 0, {}, 0, None, 0.0)
    assert texts(warming) == {"warm-up": "1 s left"}
    first = texts(Progress(0.1, 30.0, 0, 0, 0, {}, 0, None, 0.0))
    assert first["p99"] == first["queue"] == "–"
    assert first["in time"] == "0.00%"


def test_a_terminal_sees_it() -> None:
    at = console(terminal=True)
    with LiveView(console=at) as view:
        view.title("trial 3 at 400/s")
        view(PROGRESS)
        view.note("350/s passed")
    for text in ("trial 3 at 400/s", "98.73%", "45.6 ms", "350/s passed"):
        assert text in shown(at)


@pytest.mark.parametrize("width", [40, 80])
def test_nothing_is_cut_where_the_terminal_is_narrow(width: int) -> None:
    at = console(terminal=False, width=width)
    at.print(rendered(PROGRESS))
    for name, text in texts(PROGRESS).items():
        assert name in shown(at)
        assert text in shown(at)


def test_nobody_else_does() -> None:
    for at, quiet in ((console(terminal=False), False), (console(terminal=True), True)):
        with LiveView(quiet, at) as view:
            view(PROGRESS)
            view.note("350/s passed")
        assert shown(at) == ""
