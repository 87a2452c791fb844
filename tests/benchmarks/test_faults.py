"""The harness of ``batchyard bench faults``: what it notes, and what it makes of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tomllib
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest

from batchyard.benchmarks import faults, faults_ledger
from batchyard.benchmarks.callables import Act, expected
from batchyard.benchmarks.faults_judge import Fault, violation, violations
from batchyard.benchmarks.faults_ledger import ENDED, STARTED, Ledger, Writer
from batchyard.benchmarks.faults_load import OpenLoop
from batchyard.benchmarks.faults_mix import Outcome, judge
from batchyard.benchmarks.faults_run import Liveness, LoadRun
from batchyard.benchmarks.faults_server import kill_and_see, obedient_model
from batchyard.benchmarks.served import configuration
from batchyard.pool.config import validate

RUN = """
import numpy as np
from batchyard.benchmarks.callables import obedient
rows = np.array([5, 0, 6])
obedient({"id": rows, "act": np.array([ACT] * 3, np.int32), "x": rows.astype(np.float32)})
"""


def run_batch(folder: Path, act: Act = Act.ANSWER) -> int:
    """A process that runs one batch, as a worker does; how it ended."""
    code = RUN.replace("ACT", str(int(act)))
    environment = {**os.environ, faults_ledger.FOLDER_VARIABLE: str(folder)}
    return subprocess.run([sys.executable, "-c", code], env=environment, timeout=60).returncode


def outcome(kind: str, ended: str, act: int = 0, timeout_s: float | None = None) -> Outcome:
    return Outcome(kind, [5], act, timeout_s, 10.0, 11.0, ended)


def test_the_ledger_outlives_its_writer(tmp_path: Path) -> None:
    assert run_batch(tmp_path) == 0
    assert run_batch(tmp_path, Act.DIE) == -signal.SIGKILL
    (tmp_path / "die-during").touch()
    assert run_batch(tmp_path) == -signal.SIGKILL
    assert run_batch(tmp_path) == 0, "the order was for one"
    ledger = Ledger(tmp_path)
    assert ledger.starts() == {5: 4, 6: 4}, "a warm-up's rows, of id 0, are left out"
    runs = [run for run in ledger.runs() if run.request == 5]
    assert [run.ended is None for run in runs] == [False, True, True, False]
    assert all(run.ended >= run.started for run in runs if run.ended is not None)
    assert [line.split()[1] for line in ledger.story(6)].count("starts") == 4


def test_no_ledger_yet(tmp_path: Path) -> None:
    assert not Ledger(tmp_path).starts()
    assert not Ledger(tmp_path).runs()


def test_answers_depend_on_their_rows() -> None:
    ids, x = np.array([1, 1002, 3]), np.array([10, 20, 30], np.float32)
    assert expected(x, ids).tolist() == [21, 42, 63]
    assert expected(np.ones((3, 2), np.float32), ids).tolist() == [[3, 3], [4, 4], [5, 5]]
    inputs = {"id": ids, "x": x}
    assert judge(inputs, {"y": expected(x, ids)})[0] == "RIGHT"
    assert judge(inputs, {"y": expected(x, ids)[::-1]})[0] == "WRONG"
    assert judge(inputs, TimeoutError())[0] == "SILENT"
    assert judge(inputs, KeyError("y"))[0] == "KeyError"


@pytest.mark.parametrize(
    ("one", "starts", "is_right"),
    [
        (outcome("single", "RIGHT"), 1, True),
        (outcome("single", "UNAVAILABLE"), 0, False),
        (outcome("single", "SILENT"), 1, False),
        (outcome("single", "INTERNAL"), 1, False),
        (outcome("single", "INTERNAL"), 2, True),
        (outcome("single", "RIGHT", Act.RAISE), 1, False),
        (outcome("single", "INTERNAL", Act.RAISE), 1, True),
        (outcome("single", "DEADLINE_EXCEEDED"), 1, False),
        (outcome("deadline", "DEADLINE_EXCEEDED", timeout_s=0.1), 0, True),
        (Outcome("single", [5], 0, None, 0.0, 100.0, "RIGHT"), 1, False),
    ],
)
def test_what_faults_explain(one: Outcome, starts: int, is_right: bool) -> None:
    assert (violation(one, starts) == "") is is_right


def test_a_violation_has_its_story(tmp_path: Path) -> None:
    Writer(str(tmp_path)).write(STARTED, np.array([5]))
    faults_made = [Fault(1.0, "long ago"), Fault(10.5, "kill_worker: process 1")]
    (told,) = violations([outcome("single", "WRONG")], Ledger(tmp_path), faults_made)
    assert "ended with WRONG" in told
    assert "kill_worker" in told
    assert f"starts in process {os.getpid()}" in told
    assert "long ago" not in told


def test_open_loop_notes_every_outcome(tmp_path: Path) -> None:
    loop = OpenLoop(rate=2000, seconds=0.1, seed=1, first_id=7)
    silent = len(loop.planned) - 1

    def send(i: int) -> Future[dict[str, object]]:
        future: Future[dict[str, object]] = Future()
        if i == 0:
            future.set_result({"y": loop.right(1)})
        elif i != silent:
            future.set_result({"y": loop.right(i)})
        return future

    loop.run(send, grace_s=0.05)
    loop.save(tmp_path / "run.npz")
    run = LoadRun.read(tmp_path / "run.npz")
    assert run.outcomes[0] == "WRONG"
    assert run.outcomes[silent] == "SILENT"
    assert run.counts["RIGHT"] == len(run.ids) - 2
    assert run.answered_share == pytest.approx(1 - 2 / len(run.ids))
    # From the planned moment, before which nothing is sent.
    assert (run.latencies_ms() >= 0).all()
    assert (np.diff(run.planned) >= 0).all()
    assert run.ids[0] == 7


def test_open_loop_is_stopped(tmp_path: Path) -> None:
    loop = OpenLoop(rate=1000, seconds=1000, seed=1, first_id=1)
    (tmp_path / "stop").touch()
    loop.run(lambda i: Future(), tmp_path / "stop")
    loop.save(tmp_path / "run.npz")
    assert len(LoadRun.read(tmp_path / "run.npz").planned) == 0


def test_what_live_workers_could_have_done() -> None:
    liveness = Liveness.nothing()
    liveness.seen({1, 2}, 0.0)
    # Killed before the next look; its successor comes a second later.
    liveness.killed(2, 4.0)
    liveness.seen({1, 2}, 4.1)
    liveness.seen({1}, 4.2)
    liveness.seen({1, 3}, 5.0)
    assert liveness.mean_live(0.0, 10.0) == pytest.approx(1.9, abs=0.01)
    # 15 a second are offered; one worker can do 10.
    assert liveness.possible(0.0, 10.0, 15.0, 10.0) == pytest.approx(145, abs=0.5)


def test_a_killed_process_is_dead() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    before, dead = kill_and_see(process.pid)
    assert before <= dead
    assert process.wait(1) == -signal.SIGKILL


def test_every_part_has_figures_of_its_own() -> None:
    keys = [figure.key for _, figures in faults.PARTS.values() for figure in figures]
    assert len(keys) == len(set(keys))
    for _, figures in faults.PARTS.values():
        assert any(figure.goal is not None for figure in figures)


def test_configurations() -> None:
    model = obedient_model({"max_batch_size": 4}, batch_execution_timeout=0.5)
    text = configuration([model], 2, {}, {"arena_mb": 4})
    config = validate(tomllib.loads(text), "benchmark")
    assert config.pool.arena_mb == 4
    assert config.models[0].batch_execution_timeout == 0.5


def test_records_of_one_batch_are_written_at_once(tmp_path: Path) -> None:
    writer = Writer(str(tmp_path))
    writer.write(STARTED, np.arange(1, 100))
    writer.write(ENDED, np.arange(1, 100))
    assert len({run.started for run in Ledger(tmp_path).runs()}) == 1
