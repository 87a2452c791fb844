"""``batchyard load --compare``: a page of former runs."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.load_results import made_up

from batchyard.benchmarks.load.report import page, read
from batchyard.cli.load import command

pytest.importorskip("matplotlib")


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """The command has a handler of its own, for processes that are its own."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_page_of_pages_and_files(tmp_path: Path) -> None:
    before, after, both = (tmp_path / name for name in ("before.html", "after.json", "both.html"))
    before.write_text(page({"x": made_up(2.0)}))
    after.write_text(json.dumps(made_up(2.0, rate=700.0).to_json()))
    compare = ["--compare", str(before), "--compare", str(after)]
    ended = CliRunner().invoke(command, [*compare, "--html", str(both)])
    assert ended.exit_code == 0, ended.output
    assert list(read([both])) == ["before", "after"]


def test_a_file_that_holds_none(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.txt"
    wrong.write_text("figures")
    ended = CliRunner().invoke(
        command, ["--compare", str(wrong), "--html", str(tmp_path / "page.html")]
    )
    assert ended.exit_code == 2
    assert "wrong.txt is no result" in ended.output
