"""Results of load tests that nobody ran."""

from __future__ import annotations

import numpy as np

from batchyard.benchmarks.load.histogram import Histogram
from batchyard.benchmarks.load.plan import LoadPlan, MixEntry, Poisson
from batchyard.benchmarks.load.result import Interval, LoadResult

_INTERVAL_S = 0.25
_BATCH_ROWS = 16


def made_up(
    seconds: float = 20.0,
    rate: float = 400.0,
    capacity: float = 500.0,
    models: tuple[str, ...] = ("resnet",),
    deadline_s: float | None = 0.1,
    tells: bool = True,
    seed: int = 1,
) -> LoadResult:
    """One at a steady rate against a server of some capacity, which may tell of its batches."""
    chance = np.random.default_rng(seed)
    intervals, latencies, errors = [], [], 0
    late_in_all = 0
    for i in range(round(seconds / _INTERVAL_S)):
        sent = int(chance.poisson(rate * _INTERVAL_S))
        served = min(sent, int(capacity * _INTERVAL_S))
        base = 0.02 + 0.05 * min(1.0, rate / capacity) ** 4
        times = chance.gamma(4.0, base / 4.0, served)
        late = 0 if deadline_s is None else int((times > deadline_s).sum())
        latencies.append(times)
        errors += sent - served
        late_in_all += late
        intervals.append(
            Interval(
                t=i * _INTERVAL_S,
                sent=sent,
                in_time=served - late,
                late=late,
                errors={"DEADLINE_EXCEEDED": sent - served} if sent > served else {},
                p50_s=float(np.quantile(times, 0.5)) if served else None,
                p99_s=float(np.quantile(times, 0.99)) if served else None,
                queue_rows=float(chance.poisson(rate / 50)) if tells else None,
                batch_rows=float(chance.uniform(4, _BATCH_ROWS)) if tells else None,
            )
        )
    latency = np.concatenate(latencies)
    in_time = latency if deadline_s is None else latency[latency <= deadline_s]
    planned = latency.size + errors
    counts = {
        "planned": planned,
        "sent": planned,
        "in_time": int(in_time.size),
        "late": late_in_all,
        "errors": {"DEADLINE_EXCEEDED": errors} if errors else {},
        "unanswered": 0,
    }
    rows = chance.binomial(_BATCH_ROWS - 1, min(1.0, rate / capacity), latency.size // 8) + 1
    of_model = {
        **counts,
        "p50_s": float(np.quantile(latency, 0.5)),
        "p99_s": float(np.quantile(latency, 0.99)),
    }
    return LoadResult(
        plan=LoadPlan(
            target=None,
            mix=tuple(MixEntry(model, deadline_s=deadline_s) for model in models),
            arrivals=Poisson(rate),
            concurrency=None,
            duration_s=seconds,
            seed=seed,
            interval_s=_INTERVAL_S,
        ),
        machine={"cpu": "an abacus <of wood>", "cores": "2"},
        started_at="2026-01-01T00:00:00+00:00",
        duration_s=seconds,
        latency=Histogram.of(latency),
        latency_in_time=Histogram.of(in_time),
        send_lag=Histogram.of(chance.exponential(1e-4, planned)),
        intervals=intervals,
        batch_rows=({int(n): int((rows == n).sum()) for n in np.unique(rows)} if tells else {}),
        by_model=dict.fromkeys(models, of_model),
        stable=rate <= capacity,
        why_unstable="" if rate <= capacity else "its queue grows",
        error_messages={"DEADLINE_EXCEEDED": "the queue is <too> long"} if errors else {},
        **counts,
    )
