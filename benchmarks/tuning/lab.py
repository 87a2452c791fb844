"""A bench whose experiments are written down, told, and kept within the budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from batchyard.benchmarks.tuning.bench import Bench, Deadline, Execution, Load, Setting

# A trial of fewer says nothing of 99 %.
_LEAST_REQUESTS = 400
_SHORTEST_S, _LONGEST_S = 0.7, 4.0
# The budget is for about so many trials, each of which takes this much beside its own time.
_TRIALS, _AROUND_S = 32, 1.2
# What is left for the verification.
_VERIFICATION_SHARE = 0.3
# Of fewer batches a throughput depends on where the clock cut.
_LEAST_BATCHES = 15
# In fewer deadlines a backlog does not show.
_LEAST_DEADLINES = 8
# Callers that fill every batch thread and have the next batches waiting, with one to spare.
_BATCHES_WAITING = 2


@dataclass(frozen=True, slots=True)
class Experiment:
    """What was measured, and for which choice."""

    step: str
    load: Load


@dataclass(slots=True)
class Lab:
    """Experiments of one tuning. ``tell`` gets a line for a person who watches."""

    bench: Bench
    budget_s: float
    tell: Callable[[str], None]
    batch_s: Callable[[Setting], float] = lambda setting: 0.0
    """How long its largest batch is known to take."""
    ends: bool = True
    """Whether the budget ends experiments, beside saying how long each is."""
    step: str = ""
    experiments: list[Experiment] = field(default_factory=list)

    @property
    def has_time(self) -> bool:
        """Whether another experiment leaves enough for the verification."""
        return self.bench.spent_s() < (1 - _VERIFICATION_SHARE) * self.budget_s

    @property
    def is_late(self) -> bool:
        """Whether the budget is spent."""
        return self.ends and self.bench.spent_s() > self.budget_s

    def trial_s(self, setting: Setting, rate: float) -> float:
        """How long a trial at this rate should be."""
        batches_s = _LEAST_BATCHES * self.batch_s(setting) / setting.threads
        usual = min(max(self.budget_s / _TRIALS - _AROUND_S, _SHORTEST_S), _LONGEST_S)
        longest = max(self.budget_s / 10, _SHORTEST_S)
        return min(max(usual, batches_s, _LEAST_REQUESTS / max(rate, 1e-9)), longest)

    def execution(self, setting: Setting, rows: int) -> Execution:
        """Raises CannotRun."""
        found = self.bench.execution(setting, rows)
        self.tell(f"{self.step}: {rows} row{'s' * (rows > 1)}: {1e3 * found.median_s:.3g} ms")
        return found

    def saturate(self, setting: Setting, rate: float, stretch: float = 1.0) -> Load:
        """As many callers as keep every batch thread and its queue full; about ``rate`` a s."""
        each = max(1, setting.max_batch_size // self.bench.rows_per_request)
        callers = each * (setting.threads + _BATCHES_WAITING)
        load = self.bench.saturate(setting, callers, stretch * self.trial_s(setting, rate))
        return self._wrote(load, f"{load.answered_rate:,.0f} requests/s")

    def offer(self, setting: Setting, rate: float, goal: Deadline, stretch: float = 1.0) -> Load:
        """Requests with the goal's deadline."""
        least_s = min(_LEAST_DEADLINES * goal.deadline_s, self.budget_s / 10)
        seconds = max(stretch * self.trial_s(setting, rate), least_s)
        load = self.bench.offer(setting, rate, goal.deadline_s, seconds)
        what = f"{rate:,.0f} requests/s: {100 * load.in_time_share:.1f} % in time"
        return self._wrote(load, f"{what}, p99 {1e3 * load.p99_s:.3g} ms")

    def _wrote(self, load: Load, what: str) -> Load:
        self.experiments.append(Experiment(self.step, load))
        self.tell(f"{self.step}: {described(load.setting)}: {what}")
        return load


def described(setting: Setting) -> str:
    """In a few words."""
    words = [
        f"max_batch_size {setting.max_batch_size}",
        f"timeout {setting.batch_timeout_micros / 1e3:g} ms",
        str(setting.placement),
    ]
    if setting.allowed_batch_sizes:
        words.append(f"{len(setting.allowed_batch_sizes)} allowed sizes")
    return ", ".join(words)
