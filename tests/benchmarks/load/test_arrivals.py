"""Planned send times: the rates that were asked for, by seed, whoever generates them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchyard.benchmarks.load.arrivals import read_trace, send_times, warmup_times
from batchyard.benchmarks.load.plan import (
    Arrivals,
    Constant,
    LoadPlan,
    MixEntry,
    Poisson,
    Ramp,
    Steps,
    Trace,
)
from batchyard.benchmarks.load.schedule import make_schedule
from batchyard.wire.errors import ConfigurationError

rates = st.floats(0.5, 2000)
seconds = st.floats(0.1, 3)
patterns: st.SearchStrategy[Arrivals] = st.one_of(
    rates.map(Poisson),
    rates.map(Constant),
    st.builds(Ramp, st.floats(0, 2000), rates, seconds),
    st.builds(Ramp, rates, st.floats(0, 2000), seconds),
    st.lists(st.tuples(seconds, st.floats(0, 2000)), min_size=1, max_size=4).map(
        lambda steps: Steps(tuple(steps))
    ),
    st.lists(st.floats(0, 5), max_size=50).map(lambda times: Trace(tuple(times))),
)


@given(patterns, seconds, st.integers(0, 2**32))
def test_sorted_and_within_the_duration(arrivals: Arrivals, duration_s: float, seed: int) -> None:
    times = send_times(arrivals, duration_s, seed)
    assert np.all(np.diff(times) >= 0)
    assert np.all((times >= 0) & (times < duration_s))
    before = warmup_times(arrivals, 0.5, seed)
    assert np.all(np.diff(before) >= 0)
    assert np.all((before >= -0.5) & (before < 0))
    assert np.array_equal(times, send_times(arrivals, duration_s, seed))


@given(patterns, seconds, st.integers(0, 9), st.integers(1, 7))
def test_processes_together_send_what_one_would(
    arrivals: Arrivals, duration_s: float, seed: int, processes: int
) -> None:
    mix = (MixEntry("a", 1.0), MixEntry("b", 2.5))
    whole = make_schedule(LoadPlan(None, mix, arrivals, None, duration_s, 0.5, seed=seed))
    parts = [whole.share(i, processes) for i in range(processes)]
    together = sorted(
        pair for p in parts for pair in zip(p.times.tolist(), p.kinds.tolist(), strict=True)
    )
    assert together == sorted(zip(whole.times.tolist(), whole.kinds.tolist(), strict=True))
    # None of them has more than its share.
    assert max(len(p.times) for p in parts) - min(len(p.times) for p in parts) <= 1


def test_poisson_gaps_are_exponential() -> None:
    times = send_times(Poisson(1000.0), 100.0, 7)
    gaps = np.diff(times)
    # Their mean and deviation are both 1 ms; of 100,000 these are known to 0.3 %.
    assert len(times) == pytest.approx(100_000, rel=0.015)
    assert gaps.mean() == pytest.approx(1e-3, rel=0.015)
    assert gaps.std() == pytest.approx(1e-3, rel=0.03)
    assert np.corrcoef(gaps[:-1], gaps[1:])[0, 1] == pytest.approx(0, abs=0.02)
    # Counts in disjoint windows: their variance is their mean.
    counts, _ = np.histogram(times, bins=1000, range=(0, 100))
    assert counts.var() / counts.mean() == pytest.approx(1, abs=0.2)


def test_seeds_differ() -> None:
    assert not np.array_equal(
        send_times(Poisson(50), 2, 1)[:10], send_times(Poisson(50), 2, 2)[:10]
    )


def test_constant_gaps() -> None:
    assert send_times(Constant(4.0), 1.0, 0).tolist() == [0.0, 0.25, 0.5, 0.75]
    assert warmup_times(Constant(4.0), 0.5, 0).tolist() == [-0.5, -0.25]


def test_steps_have_their_rates_one_after_the_other() -> None:
    times = send_times(Steps(((10, 1000), (5, 0), (10, 3000))), 30.0, 3)
    counts, _ = np.histogram(times, bins=[0, 10, 15, 25, 30])
    # The last rate stays.
    assert counts.tolist() == pytest.approx([10_000, 0, 30_000, 15_000], rel=0.05, abs=0.5)


@pytest.mark.parametrize(("first", "last"), [(0, 2000), (2000, 0), (500, 1500), (800, 800)])
def test_ramp_grows_evenly(first: float, last: float) -> None:
    times = send_times(Ramp(first, last, 40.0), 60.0, 3)
    counts, edges = np.histogram(times, bins=12, range=(0, 60))
    middles = (edges[1:] + edges[:-1]) / 2
    expected = 5 * np.interp(middles, [0, 40], [first, last])
    assert counts.tolist() == pytest.approx(expected.tolist(), rel=0.12, abs=1)


def test_warmup_has_the_first_rate() -> None:
    assert len(warmup_times(Ramp(2000, 1, 3.0), 10.0, 0)) == pytest.approx(20_000, rel=0.05)
    assert len(warmup_times(Steps(((1, 0), (1, 99))), 10.0, 0)) == 0
    assert len(warmup_times(Trace((0.0, 1.0, 2.0)), 100.0, 0)) == pytest.approx(150, rel=0.4)
    assert len(warmup_times(Trace(()), 100.0, 0)) == 0


def test_trace_file(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_text(
        '# recorded\n0.5\n\n{"t": 0.25, "model": "b"}\n0.75 # late\n{"t": 1, "rows": 4}\n'
    )
    recorded = read_trace(path)
    assert recorded.times.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert recorded.models == ["b", None, None, None]
    assert recorded.rows == [None, None, None, 4]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0.1\nsoon\n", "line 2: could not convert"),
        ("-1\n", "line 1: -1 is no number of seconds"),
        ("nan\n", "no number of seconds"),
        ('{"model": "a"}\n', "needs t"),
        ('{"t": 1, "rows": 0}\n', "rows must be a number from 1, not 0"),
        ('{"t": 1, "model": 3}\n', "model must be a name, not 3"),
        ('{"t": []}\n', "line 1"),
        ("{]\n", "line 1"),
        ("# nothing\n", "has no arrivals"),
    ],
)
def test_what_is_no_trace(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "trace"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=says):
        read_trace(path)


def test_no_trace_at_all(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_trace(tmp_path / "nowhere")


def test_trace_names_models_and_rows(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_text('{"t": 0.1, "model": "b", "rows": 3}\n{"t": 0.2, "rows": 3}\n{"t": 0.3}\n9\n')
    plan = LoadPlan(None, (MixEntry("a", deadline_s=0.5),), Trace(str(path)), None, 1.0, 0.0)
    schedule = make_schedule(plan)
    sent = [schedule.mix[kind] for kind in schedule.kinds]
    # As the first of the mix is asked, but for what the trace says; and nothing after the end.
    assert [(entry.model, entry.rows) for entry in sent] == [("b", 3), ("b", 3), ("a", 1)]
    assert all(entry.deadline_s == 0.5 for entry in sent)
