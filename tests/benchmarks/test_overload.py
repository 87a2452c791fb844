"""The overload benchmark in virtual time, and what it makes of what it measures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from batchyard.benchmarks import overload
from batchyard.benchmarks.failures import BenchmarkFailed
from batchyard.benchmarks.load.plan import MixEntry, Poisson, Steps
from batchyard.benchmarks.overload_bench import CAPACITY, COSTLY, Served, Server
from batchyard.benchmarks.overload_step import settled_after
from batchyard.benchmarks.overload_virtual import VirtualBench
from batchyard.cli import bench

_MIX = [MixEntry("gpu", deadline_s=0.1)]


class BrokenBench(VirtualBench):
    """No server of it starts."""

    @contextmanager
    def serve(self, served: Served) -> Iterator[Server]:
        raise BenchmarkFailed("it does not start")
        yield


def test_settled_at_once() -> None:
    assert settled_after(np.full((3, 60), 400.0), 0.02, 0.06) == 0


def test_settled_after_a_dip() -> None:
    goodput = np.full((3, 60), 400.0)
    goodput[:, :10] = 100.0
    assert settled_after(goodput, 0.02, 0.02) == pytest.approx(0.2)
    late_dip = np.full((3, 60), 400.0)
    late_dip[:, 20:25] = 0.0
    assert settled_after(late_dip, 0.02, 0.02) == pytest.approx(0.5)


def test_chance_is_no_dip() -> None:
    draw = np.random.default_rng(0)
    goodput = draw.poisson(8, (20, 300)) * 50.0
    assert settled_after(goodput, 0.02, 0.06) <= 0.2


def test_virtual_server_leaves_out_the_warm_up() -> None:
    with VirtualBench(1.0, 1, 1).serve(Served()) as server:
        measured = server.load(Poisson(2 * CAPACITY), _MIX, 4.0, interval_s=0.5)
    assert measured.offered == pytest.approx(4 * 2 * CAPACITY, rel=0.1)
    assert len(measured.goodput_by_interval) == 8
    assert measured.goodput == pytest.approx(np.mean(measured.goodput_by_interval))
    assert measured.mean_batch_rows == pytest.approx(8, abs=0.2)
    assert measured.prediction_p99 < 0.02


def test_steps_begin_after_the_warm_up() -> None:
    with VirtualBench(1.0, 1, 1).serve(Served()) as server:
        steps = Steps(((1.0, 100.0), (1.0, 300.0)))
        measured = server.load(steps, _MIX, 2.0, interval_s=1.0)
    low, high = measured.goodput_by_interval
    assert high > 2 * low


def test_learning_is_worth_something() -> None:
    goodputs = []
    for learns in (True, False):
        with VirtualBench(1.0, 1, 1).serve(Served(learns=learns)) as server:
            goodputs.append(server.load(Poisson(2 * CAPACITY), _MIX, 4.0).goodput)
    assert goodputs[0] > 0.95 * CAPACITY
    assert goodputs[1] < 0.1 * CAPACITY


def test_highest_rate_lies_below_the_capacity() -> None:
    served = Served({"gpu": COSTLY}, max_batch_size=16)
    with VirtualBench(1.0, 1, 1).serve(served) as server:
        assert server.offline_rate(_MIX) == served.capacity
        rate = server.highest_rate(_MIX, 0.9 * served.capacity)
    assert 0.6 * served.capacity < rate <= 1.02 * served.capacity


def test_part_that_cannot_be_measured_is_told() -> None:
    results = overload.run(BrokenBench(1.0, 1, 1), ["steady", "step"])
    assert results.skipped == dict.fromkeys(
        ("step", "steady"), "BenchmarkFailed: it does not start"
    )


@pytest.mark.parametrize("part", ["rates", "steady"])
def test_figures_of_a_part(part: str, tmp_path: Path) -> None:
    found = tmp_path / "overload.json"
    arguments = ["overload", "--simulate", "--only", part, "--seconds", "1", "--repeat", "1"]
    result = CliRunner().invoke(bench.command, [*arguments, "--json", str(found)])
    assert result.exit_code == 0, result.output
    results = json.loads(found.read_text())
    assert results["settings"]["simulated"] is True
    assert {figure["key"] for figure in results["figures"]} == {
        figure.key
        for figure in overload.PARTS[part][1]
        # Nothing lags in virtual time.
        if not figure.key.startswith("send_lag")
    }


def test_example_of_the_documentation_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = Path(__file__).parents[2] / "docs" / "overload.md"
    (example,) = page.read_text().split("```python\n")[1:]
    exec(example.split("```")[0], {})
    assert "goodput" in capsys.readouterr().out
