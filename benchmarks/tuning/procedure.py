"""TensorFlow Serving's tuning guide, step by step, each choice by measurements.

While experimenting the queue's bound is very high. Batch threads first (on a CPU as many workers
as cores, beside fewer with more threads each), then ``max_batch_size`` (on a GPU with a timeout
that is very high), then the timeout, then ``allowed_batch_sizes``, in the end the bound. What is
chosen is then measured beside what there was before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from batchyard.benchmarks.tuning.batch_size import choose_batch_size, choose_placement
from batchyard.benchmarks.tuning.bench import Bench, Deadline, Goal, Setting
from batchyard.benchmarks.tuning.curve import Curve
from batchyard.benchmarks.tuning.lab import Experiment, Lab
from batchyard.benchmarks.tuning.tuner import Choice, Tuner
from batchyard.benchmarks.tuning.verification import Verification, verify
from batchyard.benchmarks.tuning.waiting import choose_allowed_sizes, choose_bound, choose_timeout

_BUDGET_S, _BUDGET_DEADLINES = 90.0, 300


@dataclass(frozen=True, slots=True)
class Tuning:
    """What came of it."""

    goal: Goal
    setting: Setting
    before: Setting
    choices: tuple[Choice, ...]
    curves: tuple[tuple[str, Curve], ...]
    """l(b) by what ran it; the chosen one is the last."""
    experiments: tuple[Experiment, ...]
    verification: Verification
    notes: tuple[str, ...]
    spent_s: float


def usual_budget_s(goal: Goal) -> float:
    """Long enough for all experiments, each of which lasts for some deadlines at least."""
    deadline_s = goal.deadline_s if isinstance(goal, Deadline) else 0.0
    return max(_BUDGET_S, _BUDGET_DEADLINES * deadline_s)


def tune(bench: Bench, goal: Goal, budget_s: float, tell: Callable[[str], None]) -> Tuning:
    """The setting that reaches most. Raises GoalOutOfReach, and what the bench raises."""
    lab = Lab(bench, budget_s, tell)
    tuner = Tuner(lab, goal)
    choose_placement(tuner)
    choose_batch_size(tuner)
    choose_timeout(tuner)
    choose_allowed_sizes(tuner)
    chosen = choose_bound(tuner)
    chosen = replace(chosen, num_batch_threads=chosen.threads)
    if not lab.has_time:
        tuner.notes.append(
            f"the budget of {budget_s:g} s was too short for all experiments; --budget-s gives more"
        )
    verification = verify(tuner, chosen)
    if verification.setting != chosen:
        tuner.choices = [_taken_back(choice) for choice in tuner.choices]
    used = chosen.placement
    others = [(str(p), curve) for p, curve in tuner.curves.items() if p != used]
    return Tuning(
        goal=goal,
        setting=verification.setting,
        before=bench.defaults,
        choices=tuple(tuner.choices),
        curves=(*others, (str(used), tuner.curves[used])),
        experiments=tuple(lab.experiments),
        verification=verification,
        notes=(*tuner.notes, *_doubts(lab.experiments)),
        spent_s=bench.spent_s(),
    )


def _taken_back(choice: Choice) -> Choice:
    """What was chosen, where it proved worse than what there was before."""
    reason = f"Stays as it was, which did better in the end than {choice.value}. {choice.reason}"
    return replace(choice, reason=reason)


def _doubts(experiments: list[Experiment]) -> list[str]:
    doubts = [e.load.doubt for e in experiments if e.load.doubt]
    if not doubts:
        return []
    return [f"{len(doubts)} of {len(experiments)} experiments may be off: {doubts[0]}"]
