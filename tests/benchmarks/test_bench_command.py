"""``batchyard bench``, as a person runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.waiting import wait_until

from batchyard.benchmarks import peers
from batchyard.benchmarks.results import Results
from batchyard.cli import bench, outputs

# What runs tests in the background has them ignore SIGINT; a person's shell does not.
_COMMAND = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "from batchyard.cli.main import main; main()"
)
_BENCH = [sys.executable, "-P", "-c", _COMMAND, "bench"]
_TIMEOUT_S = 100.0


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[Mapping[str, str]]:
    """One with a folder for temporary files of its own, which is empty afterwards."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    yield {**os.environ, "TMPDIR": str(folder)}
    assert not list(folder.iterdir())


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """The command, run in this process, answers SIGTERM in its own way."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def run(environment: Mapping[str, str], *arguments: str | Path) -> str:
    """What the command prints; fails when it does."""
    ended = subprocess.run(
        [*_BENCH, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_small(environment: Mapping[str, str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found, shown = tmp_path / "small.json", tmp_path / "small.html"
    short = ["--seconds", "0.2", "--repeat", "1"]
    printed = run(environment, "small", *short, "--json", found, "--html", shown)
    results = json.loads(found.read_text())
    goals = {f["key"]: f["goal"] for f in results["figures"] if f["goal"] is not None}
    for kind in ("tcp", "ipc"):
        assert goals[f"submit_{kind}"] == 2.0
        assert goals[f"predict_many_{kind}"] == 5.0
        assert goals[f"async_{kind}"] == 1.0
        assert goals[f"one_by_one_{kind}"] == 0.5
        assert goals[f"broker_cpu_submit_{kind}"] == 2.0
        assert goals[f"predict_p50_{kind}"] == 1.6
    for figure in results["figures"]:
        assert figure["median"] > 0
        assert figure["title"] in printed
        assert (figure["ratio"] is None) is (figure["reference"] is None)
    assert results["machine"]["cores"]
    assert "<table>" in shown.read_text()


def test_scale(environment: Mapping[str, str], tmp_path: Path) -> None:
    found = tmp_path / "scale.json"
    workers = ["--workers", "2", "--workers", "1"]
    run(environment, "scale", *workers, "--seconds", "0.2", "--repeat", "2", "--json", found)
    measured: dict[str, Any] = json.loads(found.read_text())["measured"]
    for count in (1, 2):
        for share in measured[f"share_{count}"]:
            assert 0 < share <= 1.2
        assert len(measured[f"broker_cpu_{count}"]) == 2


def test_security(environment: Mapping[str, str], tmp_path: Path) -> None:
    found = tmp_path / "security.json"
    printed = run(environment, "security", "--seconds", "0.1", "--repeat", "1", "--json", found)
    figures = json.loads(found.read_text())["figures"]
    assert len(figures) == 16
    for figure in figures:
        assert figure["median"] > 0
        assert figure["title"] in printed
        # Each with keys stands beside the same without.
        assert (figure["ratio"] is None) is figure["key"].endswith("_tcp")


def test_faults(environment: Mapping[str, str], tmp_path: Path) -> None:
    found = tmp_path / "faults.json"
    parts = ["--only", "poison", "--only", "drain"]
    printed = run(environment, "faults", *parts, "--times", "1", "--json", found)
    results = json.loads(found.read_text())
    assert not results["skipped"], printed
    met = {figure["key"]: figure["met"] for figure in results["figures"]}
    for key in ("killing_innocents", "killing_deaths", "raising_innocents", "drain_silent"):
        assert met[key], printed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_when_it_is_stopped(
    environment: Mapping[str, str], number: signal.Signals
) -> None:
    folder = Path(environment["TMPDIR"])
    process = subprocess.Popen(
        [*_BENCH, "scale", "--workers", "1", "--seconds", "50", "--repeat", "1"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Ctrl-C signals the whole group; what is in no group of ours must be ended too.
        start_new_session=True,
    )
    try:
        # Its socket is there when the server is.
        wait_until(lambda: list(folder.rglob("broker")), "the server does not start", _TIMEOUT_S)
        assert len(_using(folder)) > 1
        os.killpg(process.pid, number)
        process.communicate(timeout=_TIMEOUT_S)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 128 + number
    wait_until(lambda: not _using(folder), lambda: f"still there: {_using(folder)}")


def _using(folder: Path) -> list[int]:
    """The processes that were started with this folder for their temporary files."""
    wanted = f"TMPDIR={folder}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if wanted in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["small", "--seconds", "0"], "0.0 is not in the range"),
        (["small", "--repeat", "0"], "0 is not in the range"),
        (["small", "--json", "/nonexistent/x.json"], "there is no folder /nonexistent"),
        (["scale", "--workers", "0"], "0 is not in the range"),
        (["faults", "--only", "poisons"], "'poisons' is not one of"),
        (["faults", "--times", "0"], "0 is not in the range"),
        (["smal"], "No such command"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(bench.command, arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_page_without_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(outputs, "find_spec", lambda name: None)
    result = CliRunner().invoke(bench.command, ["small", "--html", str(tmp_path / "x.html")])
    assert result.exit_code == 2
    assert "pip install 'batchyard[bench]'" in result.output


def test_server_that_does_not_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    result = CliRunner().invoke(bench.command, ["scale", "--seconds", "0.1", "--repeat", "1"])
    assert result.exit_code == 1
    assert "did not start" in result.output


def test_a_run_that_measured_nothing_is_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    results = Results("peers", {}, {}, [], {}, {"mosec": "not installed"})
    monkeypatch.setattr(peers, "run", lambda seconds, repeat: results)
    result = CliRunner().invoke(bench.command, ["peers"])
    assert result.exit_code == 1
    assert "skipped mosec: not installed" in result.output
    assert "nothing could be measured" in result.output
