"""Which request is sent when: a plan's arrivals and its mix, put together."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from batchyard.benchmarks.load.arrivals import Recorded, Times, send_times, trace_of, warmup_times
from batchyard.benchmarks.load.mix import draw
from batchyard.benchmarks.load.plan import LoadPlan, MixEntry, Trace

Kinds = npt.NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class Schedule:
    """Requests in the order of their times; each is of the kind ``mix[kind]``."""

    mix: tuple[MixEntry, ...]
    times: Times
    """Seconds from the start; negative for those of the warm-up, which are not counted."""
    kinds: Kinds

    def share(self, process: int, processes: int) -> Schedule:
        """What one of several processes sends: together they send all of it."""
        part = slice(process, None, processes)
        return Schedule(self.mix, self.times[part], self.kinds[part])


def make_schedule(plan: LoadPlan) -> Schedule:
    """The schedule of an open loop; a closed one's has no times, but what its mix is.

    It is the same for the same plan, whoever makes it. Raises ConfigurationError for a trace that
    cannot be read.
    """
    if plan.arrivals is None:
        return Schedule(plan.mix, np.empty(0), np.empty(0, np.uint16))
    before = warmup_times(plan.arrivals, plan.warmup_s, plan.seed)
    times = send_times(plan.arrivals, plan.duration_s, plan.seed)
    kinds = draw(plan.mix, len(before) + len(times), plan.seed)
    mix = plan.mix
    if isinstance(plan.arrivals, Trace):
        mix, named = _mix_of_trace(plan.mix, trace_of(plan.arrivals), len(times))
        drawn = kinds[len(before) :]
        drawn[named >= 0] = named[named >= 0]
    return Schedule(mix, np.concatenate([before, times]), kinds)


def _mix_of_trace(
    mix: tuple[MixEntry, ...], recorded: Recorded, count: int
) -> tuple[tuple[MixEntry, ...], npt.NDArray[np.int64]]:
    """The mix, with what only the trace names; the kinds that lines name, -1 where they do not."""
    entries = list(mix)
    known: dict[tuple[str | None, int | None], int] = {(None, None): -1}
    named = np.empty(count, np.int64)
    for i in range(count):
        key = recorded.models[i], recorded.rows[i]
        if key not in known:
            known[key] = _find_or_add(entries, *key)
        named[i] = known[key]
    return tuple(entries), named


def _find_or_add(entries: list[MixEntry], model: str | None, rows: int | None) -> int:
    for i, entry in enumerate(entries):
        if model in (None, entry.model) and rows in (None, entry.rows):
            return i
    # As the first of this model is asked; of a model that the mix does not have, as the first.
    like = next((entry for entry in entries if entry.model == model), entries[0])
    entries.append(
        dataclasses.replace(like, model=model or like.model, rows=rows or like.rows, inputs=None)
    )
    return len(entries) - 1
