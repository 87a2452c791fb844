"""``batchyard tune``, as a person runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.waiting import wait_until

from batchyard.cli import tune
from batchyard.pool.config import validate

MODEL = """
import time
import numpy as np

def sleeper(inputs):
    time.sleep(0.004 + 0.001 * len(inputs["x"]))
    return {"y": inputs["x"] + 1}

def fails(inputs):
    raise ValueError("never again")
"""
CONFIG = """# a comment of mine
[[pool.workers]]
device = "cpu"
count = 1

[[models]]
name = "sleeper"
runtime = "python"
path = "{path}:{name}"

[models.signature.inputs]
x = {{ dtype = "float32", shape = [-1, 2] }}

[models.signature.outputs]
y = {{ dtype = "float32", shape = [-1, 2] }}
"""
_COMMAND = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "from batchyard.cli.main import main; main()"
)
_TUNE = [sys.executable, "-P", "-c", _COMMAND, "tune"]
_TIMEOUT_S = 100.0


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write(tmp_path, "sleeper")


def write(folder: Path, name: str) -> Path:
    (folder / "model.py").write_text(MODEL)
    path = folder / "config.toml"
    path.write_text(CONFIG.format(path=folder / "model.py", name=name))
    return path


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """The command, run in this process, answers SIGTERM in its own way."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def run(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    ended = subprocess.run(
        [*_TUNE, *map(str, arguments)],
        env={**os.environ, "TMPDIR": str(temporary)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    assert not list(temporary.iterdir())
    return ended


def test_a_sleeping_model(tmp_path: Path, config: Path) -> None:
    """Far too little time for good figures: what is tested is that all of it works."""
    goal = ["--goal", "throughput", "--budget-s", "5", "--largest-batch", "8"]
    reports = ["--json", "found.json", "--out", "out.toml"]
    ended = run(tmp_path, "sleeper", "--config", config, *goal, *reports)
    assert ended.returncode == 0, ended.stderr
    assert "Verified by load" in ended.stdout
    text = (tmp_path / "out.toml").read_text()
    assert text.startswith("# a comment of mine")
    (model,) = validate(tomllib.loads(text), "test").models
    found = json.loads((tmp_path / "found.json").read_text())
    assert model.batching.max_batch_size == found["setting"]["max_batch_size"]
    assert [e["rows"] for e in found["execution_times"]["1 worker"]] == [1, 2, 4, 8]
    assert all(e["median_s"] >= 0.004 for e in found["execution_times"]["1 worker"])
    assert found["verification"]["rate"] > 0


def test_a_model_that_does_not_load(tmp_path: Path) -> None:
    write(tmp_path, "sleeper")
    ended = run(tmp_path, f"gone={tmp_path / 'model.py'}:nothing", "--device", "cpu")
    assert ended.returncode == 1
    assert "the server did not start" in ended.stderr
    assert not (tmp_path / "tuned.toml").exists()


def test_a_model_that_answers_errors(tmp_path: Path) -> None:
    config = write(tmp_path, "fails")
    ended = run(tmp_path, "sleeper", "--config", config)
    assert ended.returncode == 1
    assert "never again" in ended.stderr


def test_ctrl_c_ends_everything(tmp_path: Path, config: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    process = subprocess.Popen(
        [*_TUNE, "sleeper", "--config", str(config)],
        env={**os.environ, "TMPDIR": str(temporary)},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    try:
        wait_until(lambda: list(temporary.rglob("broker")), "no server starts", _TIMEOUT_S)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=_TIMEOUT_S)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130, said
    assert not (tmp_path / "tuned.toml").exists()
    wait_until(lambda: not list(temporary.iterdir()), "something is left")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing argument 'MODEL'"),
        (["sleeper"], "give --config CONFIG.toml, or MODEL as NAME=PATH"),
        (["other", "--config", "CONFIG"], "has no model 'other'; it has sleeper"),
        (["a=b", "--config", "CONFIG"], "MODEL is a name in it"),
        (["sleeper", "--config", "nowhere.toml"], "No such file"),
        (["sleeper", "--config", "CONFIG", "--deadline-ms", "0"], "not in the range"),
        (
            ["sleeper", "--config", "CONFIG", "--deadline-ms", "5", "--goal", "throughput"],
            "two goals",
        ),
        (["sleeper", "--config", "CONFIG", "--out", "CONFIG"], "--force overwrites it"),
        (["sleeper", "--config", "CONFIG", "--html", "/none/x.html"], "there is no folder /none"),
        (["sleeper", "--config", "CONFIG", "--shape", "a"], "no list like"),
        (["sleeper", "--config", "CONFIG", "--device", "tpu"], "tpu"),
        (["m=/nowhere/at/all"], "/nowhere/at/all"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str, config: Path) -> None:
    words = [str(config) if word == "CONFIG" else word for word in arguments]
    result = CliRunner().invoke(tune.command, words)
    assert result.exit_code == 2, result.output
    assert message in result.output


def test_no_batching_is_nothing_to_tune(config: Path) -> None:
    config.write_text(config.read_text() + "\n[models.batching]\nenable_batching = false\n")
    result = CliRunner().invoke(tune.command, ["sleeper", "--config", str(config)])
    assert result.exit_code == 2
    assert "nothing to tune" in result.output
