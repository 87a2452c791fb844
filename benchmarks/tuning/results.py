"""A tuning as a table for a terminal, as values for JSON, and as the file's comments."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from batchyard.benchmarks.machine import describe
from batchyard.benchmarks.table import number
from batchyard.benchmarks.tuning.bench import Deadline, Load, Setting
from batchyard.benchmarks.tuning.contest import Verdict
from batchyard.benchmarks.tuning.curve import Curve
from batchyard.benchmarks.tuning.procedure import Tuning

FORMAT = "batchyard-tune-1"


def values(setting: Setting) -> dict[str, Any]:
    """What a table shows of a setting, by name."""
    return {
        "workers": setting.placement.workers,
        "concurrent_batches": setting.placement.concurrent_batches,
        "num_batch_threads": setting.threads,
        "max_batch_size": setting.max_batch_size,
        "batch_timeout_micros": setting.batch_timeout_micros,
        "max_enqueued_batches": setting.max_enqueued_batches,
        "allowed_batch_sizes": list(setting.allowed_batch_sizes) or "all",
    }


def rows(tuning: Tuning) -> list[tuple[str, str, str, str]]:
    """Parameter, value, what it was before, and why; those that were chosen, or that changed."""
    chosen, before = values(tuning.setting), values(tuning.before)
    why = {choice.key: choice.reason for choice in tuning.choices}
    why["workers"] = why["concurrent_batches"] = "See num_batch_threads."
    return [
        (name, str(value), str(before[name]), why.get(name, ""))
        for name, value in chosen.items()
        if value != before[name] or name not in ("workers", "concurrent_batches")
    ]


def reasons(tuning: Tuning) -> dict[str, str]:
    """Why each key is what it is; empty when all stays as it was."""
    if tuning.setting == tuning.before:
        return {}
    return {choice.key: choice.reason for choice in tuning.choices}


def verified(tuning: Tuning) -> str:
    """What the verification found, in a sentence or two."""
    found = tuning.verification
    what = f"{number(found.rate)} requests/s"
    if isinstance(tuning.goal, Deadline):
        share = sum(load.in_time_share for load in found.chosen) / len(found.chosen)
        what += f", {100 * share:.1f} % in time"
    if not found.before_rate:
        beside = "as it was before, it holds no rate that was tried"
    elif isinstance(tuning.goal, Deadline) and found.before_rate == found.rate:
        beside = "as it was before, it holds that rate too"
    else:
        beside = (
            f"as it was before {number(found.before_rate)}: {number(found.ratio)} times as much"
        )
    held = "" if found.holds else " (not held in the end: the machine is too noisy, or too small)"
    return f"Verified by load, in turn: {what}{held}; {beside}."


def to_json(tuning: Tuning, model: str) -> dict[str, Any]:
    """All of it, as values that JSON has."""
    found = tuning.verification
    return {
        "format": FORMAT,
        "model": model,
        "goal": str(tuning.goal),
        "deadline_s": tuning.goal.deadline_s if isinstance(tuning.goal, Deadline) else None,
        "setting": values(tuning.setting),
        "before": values(tuning.before),
        "choices": [
            {
                "key": choice.key,
                "value": choice.value,
                "reason": choice.reason,
                "measured": [_verdict(verdict) for verdict in choice.verdicts],
            }
            for choice in tuning.choices
        ],
        "execution_times": {name: _curve(curve) for name, curve in tuning.curves},
        "verification": {
            "rate": found.rate,
            "before_rate": found.before_rate,
            "holds": found.holds,
            "chosen": [_load(load) for load in found.chosen],
            "before": [_load(load) for load in found.before],
        },
        "experiments": [
            {"step": experiment.step, **_load(experiment.load)} for experiment in tuning.experiments
        ],
        "notes": list(tuning.notes),
        "spent_s": tuning.spent_s,
        "machine": describe(),
    }


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return {
        "setting": values(verdict.setting),
        "reached": verdict.score,
        "words": verdict.words,
        "won": verdict.won,
    }


def _curve(curve: Curve) -> list[dict[str, Any]]:
    return [asdict(execution) for execution in curve.executions]


def _load(load: Load) -> dict[str, Any]:
    return {**asdict(load), "setting": values(load.setting), "errors": dict(load.errors)}
