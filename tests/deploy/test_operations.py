"""The page for the person on call knows every alarm and every exit code."""

from __future__ import annotations

import re
from pathlib import Path

from batchyard.wire import control

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text()


def test_every_alarm_has_a_paragraph() -> None:
    rules = (ROOT / "deploy" / "prometheus" / "alerts.yml").read_text()
    alerts = set(re.findall(r"- alert: (\w+)", rules))
    assert alerts
    assert set(re.findall(r"`(Batchyard\w+)`", PAGE)) == alerts


def test_every_exit_code_has_a_row() -> None:
    codes = {value for name, value in vars(control).items() if name.startswith("EXIT_")}
    table = PAGE.partition("## Exit codes")[2].partition("\n## ")[0]
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)} == codes
