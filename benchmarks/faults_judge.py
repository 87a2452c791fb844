"""Which outcomes the faults explain; for the others, their story."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from batchyard.benchmarks.callables import Act
from batchyard.benchmarks.faults_ledger import Ledger
from batchyard.benchmarks.faults_mix import LIMIT_S, Outcome

# Stories of these; the others are counted.
_STORIES = 20
# Around a call, which faults its story tells.
_AROUND_S = 3.0
# A call that a thread of the SDK times out may be late by what the machine is.
_LATE_S = 5.0


@dataclass(frozen=True, slots=True)
class Fault:
    """One that was made, and when."""

    at: float
    what: str


def read_outcomes(path: Path) -> Iterator[Outcome]:
    """What ``faults_mix`` wrote."""
    with path.open() as file:
        for line in file:
            yield Outcome(**json.loads(line))


def violation(outcome: Outcome, starts: int) -> str:
    """What is wrong with an outcome, or nothing.

    ``starts`` is how often the request of it that ran most often began to run. A good request
    that was twice on a worker that died may have been taken for what killed it, no more often.
    """
    if outcome.took_s > LIMIT_S + _LATE_S:
        return f"took {outcome.took_s:.1f} s"
    if outcome.act != Act.ANSWER:
        allowed = {"INTERNAL"}
    elif outcome.timeout_s is not None:
        allowed = {"RIGHT", "DEADLINE_EXCEEDED"}
    else:
        allowed = {"RIGHT"}
    # Those of a SavedModel are in no ledger.
    if starts >= 2 or outcome.kind == "savedmodel":
        allowed.add("INTERNAL")
    return "" if outcome.outcome in allowed else f"ended with {outcome.outcome}"


def counted(outcomes: Iterable[Outcome], counts: Counter[str]) -> Iterator[Outcome]:
    """The same, counted by how they ended."""
    for outcome in outcomes:
        counts[outcome.outcome] += 1
        yield outcome


def violations(outcomes: Iterable[Outcome], ledger: Ledger, faults: Sequence[Fault]) -> list[str]:
    """Every call whose outcome no fault explains, with its story."""
    starts = ledger.starts()
    found: list[str] = []
    for outcome in outcomes:
        wrong = violation(outcome, max(starts[request] for request in outcome.ids))
        if wrong:
            tell = len(found) < _STORIES
            found.append(_story(outcome, wrong, ledger, faults) if tell else wrong)
    return found


def _story(outcome: Outcome, wrong: str, ledger: Ledger, faults: Sequence[Fault]) -> str:
    ids = outcome.ids
    asked = f"act {Act(outcome.act).name}, timeout {outcome.timeout_s}"
    lines = [
        f"{outcome.kind} call, requests {ids[0]} to {ids[-1]}, {asked}: {wrong} {outcome.detail}",
        f"  {outcome.sent:.3f} sent",
    ]
    lines += [f"  {line}" for request in ids[:3] for line in ledger.story(request)]
    lines += [
        f"  {fault.at:.3f} FAULT {fault.what}"
        for fault in faults
        if outcome.sent - _AROUND_S <= fault.at <= outcome.done
    ]
    lines.append(f"  {outcome.done:.3f} {outcome.outcome}")
    return "\n".join([lines[0], *sorted(lines[1:])])
