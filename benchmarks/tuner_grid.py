"""``batchyard bench tuner``: what the tuner finds beside the best of an exhaustive grid.

The same device, the same measurement a point: the highest rate with 99 % inside the deadline, or
the throughput. The grid's best is measured again, in turn with the tuner's setting: the best of
many noisy figures is better than what it stands for.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from batchyard.benchmarks.machine import describe
from batchyard.benchmarks.results import Figure, Results, run_rounds
from batchyard.benchmarks.tuning.bench import Bench, Deadline, Goal, Placement, Setting, Throughput
from batchyard.benchmarks.tuning.contest import RateContest, contest_for
from batchyard.benchmarks.tuning.lab import Lab
from batchyard.benchmarks.tuning.procedure import tune, usual_budget_s
from batchyard.benchmarks.tuning.results import values
from batchyard.benchmarks.tuning.server_bench import ServerBench
from batchyard.benchmarks.tuning.subject import Subject
from batchyard.benchmarks.tuning.synthetic import SyntheticBench, linear
from batchyard.benchmarks.tuning.verification import STRETCH
from batchyard.pool.config import validate
from batchyard.pool.plan import usable_cpus

GOAL_SCORE, GOAL_TIME = 0.95, 0.1
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
TIMEOUTS_MICROS = (0, 1_000, 2_000, 5_000, 10_000)
# What a batch takes: this, and so much for each row.
_BASE_S, _ROW_S = 0.005, 0.0005
_NOISE = 0.03
_FIRST_GUESS = 100.0
_MODEL = "sleeper"
_TENSOR = {"dtype": "float32", "shape": [-1, 4]}


@dataclass(frozen=True, slots=True)
class Point:
    """A setting of the grid, and what it reached."""

    setting: Setting
    score: float


def run(
    deadline_ms: float | None, budget_s: float | None, repeat: int, *, simulate: bool
) -> Results:
    """Tunes, goes through the grid, and measures both in ``repeat`` rounds.

    ``simulate``: in virtual time, which is what times are then given in.
    """
    goal: Goal = Throughput() if deadline_ms is None else Deadline(deadline_ms / 1e3)
    budget_s = budget_s or usual_budget_s(goal)
    with _bench(simulate) as bench:
        tuning = tune(bench, goal, budget_s, _tell)
        tuner_s = bench.spent_s()
        _tell(f"the tuner chose {tuning.setting} in {tuner_s:.0f} s")
    with _bench(simulate) as bench:
        points = grid(bench, goal, budget_s)
        grid_s = bench.spent_s()
        best = max(points, key=lambda point: point.score)
        _tell(f"the grid's best of {len(points)} is {best} in {grid_s:.0f} s")
        measured = run_rounds(_both(bench, goal, budget_s, best, tuning.setting), repeat)
    measured |= {"grid_s": [grid_s], "tuner_s": [tuner_s]}
    unit = "requests/s"
    figures = [
        Figure("best", f"the best of a grid of {len(points)}", unit),
        Figure("tuned", "what the tuner chose", unit, "best", GOAL_SCORE),
        Figure("grid_s", "the grid took", "s"),
        Figure("tuner_s", "the tuner took", "s", "grid_s", GOAL_TIME, lower_is_better=True),
    ]
    settings = {
        "goal": str(goal),
        "device": "synthetic, in virtual time" if simulate else "python callable that sleeps",
        "a batch": f"{1e3 * _BASE_S:g} ms and {1e3 * _ROW_S:g} ms a row",
        "best": values(best.setting),
        "tuned": values(tuning.setting),
    }
    return Results("tuner", describe(), settings, figures, measured)


def grid(bench: Bench, goal: Goal, budget_s: float) -> list[Point]:
    """Every ``max_batch_size`` with every ``batch_timeout_micros``, on every placement."""
    lab = Lab(bench, budget_s, _tell, ends=False)
    points: list[Point] = []
    for setting in grid_settings(bench.placements):
        lab.step = f"grid {len(points) + 1}"
        # The one before is much like this one.
        guess = points[-1].score if points and points[-1].score else _FIRST_GUESS
        points.append(Point(setting, _score(lab, goal, setting, guess)))
    return points


def grid_settings(placements: tuple[Placement, ...]) -> list[Setting]:
    """The whole grid, in an order in which neighbours are alike."""
    return [
        Setting(placement, size, timeout)
        for placement in placements
        for size in SIZES
        for timeout in TIMEOUTS_MICROS
    ]


def _score(lab: Lab, goal: Goal, setting: Setting, guess: float) -> float:
    contest = contest_for(goal, lab)
    if isinstance(contest, RateContest):
        return contest.search(setting, guess).score
    return lab.saturate(setting, guess, STRETCH).answered_rate


def _both(
    bench: Bench, goal: Goal, budget_s: float, best: Point, tuned: Setting
) -> Mapping[str, Callable[[], Mapping[str, float]]]:
    lab = Lab(bench, budget_s, _tell, ends=False, step="comparison")

    def measure(key: str, setting: Setting) -> Callable[[], Mapping[str, float]]:
        return lambda: {key: _score(lab, goal, setting, best.score)}

    return {"the grid's best": measure("best", best.setting), "tuned": measure("tuned", tuned)}


@contextmanager
def _bench(simulate: bool) -> Iterator[SyntheticBench | ServerBench]:
    if simulate:
        seconds = linear(_BASE_S, _ROW_S)
        yield SyntheticBench(
            lambda rows, _: seconds(rows),
            cores=2,
            placements=(Placement(2), Placement(1)),
            most_rows=max(SIZES),
            noise=_NOISE,
        )
        return
    variables = {"BATCHYARD_TUNING_BASE_S": str(_BASE_S), "BATCHYARD_TUNING_ROW_S": str(_ROW_S)}
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        with ServerBench(replace(sleeper_subject(), largest_batch=max(SIZES))) as bench:
            bench.start()
            yield bench
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def sleeper_subject() -> Subject:
    """A python callable that sleeps, on as many workers as suit it."""
    tables: dict[str, Any] = {
        "pool": {"workers": [{"device": "cpu"}]},
        "models": [
            {
                "name": _MODEL,
                "runtime": "python",
                "path": "batchyard.benchmarks.tuning.callables:sleeper",
                "signature": {"inputs": {"x": _TENSOR}, "outputs": {"y": _TENSOR}},
            }
        ],
    }
    return Subject(
        tables=tables,
        config=validate(tables, "bench tuner"),
        model=_MODEL,
        device="cpu",
        workers=1,
        cores=len(usable_cpus()),
        workers_are_given=False,
    )


def _tell(line: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{line[:110]}\x1b[K", end="", file=sys.stderr, flush=True)
