"""How far something has come that takes minutes."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from support.terminal import as_text

from batchyard.benchmarks.progress import ProgressBar
from batchyard.benchmarks.results import run_rounds


def shown(terminal: bool, *, ticks: bool = False) -> str:
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=80)
    with ProgressBar("starting", 4, ticks=ticks, console=console) as bar:
        bar.show("round 1 of 2: [b]", 3)
        bar.note("a [line] that stays")
    return as_text(file.getvalue())


def test_a_terminal_sees_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for ticks in (False, True):
        text = shown(True, ticks=ticks)
        # Names are not markup.
        for part in ("round 1 of 2: [b]", "75%", "a [line] that stays\n"):
            assert part in text


def test_a_file_has_only_what_stays() -> None:
    assert shown(False) == "a [line] that stays\n"


def test_rounds_are_measured_in_turn(capsys: pytest.CaptureFixture[str]) -> None:
    order: list[str] = []

    def measure(key: str) -> dict[str, float]:
        order.append(key)
        return {key: float(len(order))}

    measured = run_rounds({"a": lambda: measure("a"), "b": lambda: measure("b")}, 2)
    assert measured == {"a": [1.0, 3.0], "b": [2.0, 4.0]}
    assert order == ["a", "b", "a", "b"]
    assert capsys.readouterr() == ("", "")
