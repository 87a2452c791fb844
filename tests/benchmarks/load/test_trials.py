"""A search's trials as runs of their own, with runs that take no time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from support.load_results import made_up

from batchyard.benchmarks.load import trials
from batchyard.benchmarks.load.early_stopping import Rule
from batchyard.benchmarks.load.plan import LoadPlan, MixEntry, Poisson
from batchyard.benchmarks.load.result import LoadResult, Progress
from batchyard.benchmarks.load.search import Trial
from batchyard.benchmarks.load.trials import Trials, find, rule_for
from batchyard.wire.errors import ConfigurationError

PLAN = LoadPlan("ipc://x", (MixEntry("m", deadline_s=0.1),), Poisson(1.0), None, 1.0, seed=3)


class Server:
    """Answers in time up to a rate; above, a tenth of the requests are late."""

    def __init__(self, capacity: float) -> None:
        self.capacity = capacity
        self.plans: list[LoadPlan] = []
        self.watched: list[float] = []

    def run(self, plan: LoadPlan, progress: Callable[[Progress], None]) -> LoadResult:
        self.plans.append(plan)
        if plan.concurrency is not None:
            in_time = round(min(self.capacity, 2.0 * plan.concurrency) * plan.duration_s)
            return replace(made_up(1.0), plan=plan, in_time=in_time, duration_s=plan.duration_s)
        assert isinstance(plan.arrivals, Poisson)
        rate = plan.arrivals.rate
        t = -1.0
        while (t := t + 0.5) <= plan.duration_s:
            planned = max(0, round(rate * t))
            late = 0 if rate <= self.capacity else planned // 10
            in_flight = min(planned - late, round(rate * 0.05))
            in_time = planned - late - in_flight
            self.watched.append(t)
            progress(Progress(t, plan.duration_s, planned, in_time, late, {}, in_flight, None, 0.0))
        planned = round(rate * plan.duration_s)
        return replace(
            made_up(1.0),
            plan=plan,
            planned=planned,
            in_time=planned - late,
            duration_s=plan.duration_s,
            stable=False,
            why_unstable="the generator was late itself",
        )


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    pauses: list[float] = []
    monkeypatch.setattr(trials.time, "sleep", pauses.append)
    return pauses


def test_find_measures_offline_and_goes_on_from_there() -> None:
    server = Server(1000.0)
    seen: list[Trial] = []
    found = find(PLAN, on_trial=seen.append, run=server.run)
    assert found.offline_rate == 1000.0
    closed = [plan for plan in server.plans if plan.concurrency is not None]
    # Nothing is late, or dropped, when all that counts is throughput.
    assert {plan.mix[0].deadline_s for plan in closed} == {None}
    assert found.trials == seen
    assert found.trials[0].rate == pytest.approx(700.0)
    assert 1000 / 1.021 <= found.rate <= 1000
    assert found.trials[-1].confirms
    assert found.trials[-1].seconds == 30.0
    assert {plan.target for plan in server.plans} == {"ipc://x"}


def test_trials_end_as_soon_as_they_are_decided() -> None:
    server = Server(1000.0)
    attempt = Trials(PLAN, lambda progress: None, server.run)
    rule = Rule(least_s=5.0, most_s=60.0)
    passed = attempt(900.0, 7, rule)
    assert rule.passed(passed.counts)
    assert passed.counts.seconds == 5.0
    assert server.plans[-1].seed == 7
    failed = attempt(2000.0, 8, rule)
    assert rule.failed(failed.counts)
    assert failed.counts.seconds == 0.5


def test_a_failed_trial_is_drained(_no_pauses: list[float]) -> None:  # noqa: PT019
    attempt = Trials(PLAN, lambda progress: None, Server(1000.0).run)
    attempt(900.0, 1, Rule())
    attempt(2000.0, 2, Rule())
    assert max(_no_pauses) == 0
    attempt(900.0, 3, Rule())
    assert 0 < max(_no_pauses) <= 0.5


def test_an_undecided_trial_tells_its_result() -> None:
    server = Server(1000.0)
    attempt = Trials(PLAN, lambda progress: None, server.run)
    observed = attempt(10.0, 1, Rule(most_s=6.0))
    assert observed.counts.seconds == 6.0
    assert observed.counts.in_time == 60
    assert observed.unstable == "the generator was late itself"


def test_trials_are_long_enough_for_a_queue_to_grow() -> None:
    assert rule_for(PLAN, 0.99, 0.01).least_s == pytest.approx(10.0)
    assert rule_for(PLAN, 0.99, 0.1).least_s == 5.0
    long = replace(PLAN, mix=(MixEntry("m", deadline_s=2.0),))
    assert rule_for(long, 0.99, 0.02).least_s == 60.0


def test_no_search_without_deadlines() -> None:
    plan = replace(PLAN, mix=(*PLAN.mix, MixEntry("n")))
    with pytest.raises(ConfigurationError, match="needs a deadline"):
        find(plan, run=Server(1.0).run)


def test_a_start_can_be_given() -> None:
    server = Server(1000.0)
    found = find(PLAN, offline=False, start_rate=980.0, run=server.run)
    assert found.offline_rate is None
    assert found.server_over_offline is None
    assert found.trials[0].rate == 980.0


def test_what_was_never_sent_is_not_taken_for_under_way() -> None:
    """A generator that cannot keep up must not have a rate passed that it did not send."""

    def run(plan: LoadPlan, progress: Callable[[Progress], None]) -> LoadResult:
        assert isinstance(plan.arrivals, Poisson)
        for seconds in range(1, 100):
            planned = round(plan.arrivals.rate * seconds)
            unsent = planned // 10 if plan.arrivals.rate > 500 else 0
            made = Progress(seconds, 99.0, planned, planned - unsent, 0, {}, unsent, None, 0.0)
            progress(made)
        raise AssertionError("it was to be decided by then")

    found = find(PLAN, start_rate=1000.0, offline=False, run=run)
    assert 480 < found.rate <= 500
