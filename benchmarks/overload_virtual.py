"""The overload benchmark's servers in virtual time."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from itertools import count

import numpy as np

from batchyard.benchmarks.load.arrivals import send_times, warmup_times
from batchyard.benchmarks.load.early_stopping import Counts, Rule
from batchyard.benchmarks.load.plan import Arrivals, MixEntry, Poisson, Trace
from batchyard.benchmarks.load.search import Observed, find_rate
from batchyard.benchmarks.overload_bench import WARMUP_S, Measured, Served, Server
from batchyard.benchmarks.simulation import (
    Gaussian,
    SimulatedModel,
    SimulationResult,
    Traffic,
    Workers,
    simulate,
)

# Of runs that sleep for 20 ms, as measured.
JITTER = Gaussian(0.003)
# Of a search: enough that the rule's doubt costs less than the tolerance.
_TRIAL_REQUESTS = 12_000
_TOLERANCE = 0.02


@dataclasses.dataclass(slots=True)
class VirtualBench:
    """See ``overload_bench.Bench``. Every load has random numbers of its own."""

    seconds: float
    repeat: int
    seed: int
    is_simulated: bool = True

    def serve(self, served: Served) -> contextlib.AbstractContextManager[Server]:
        """See ``Bench``."""
        return self._serve(served)

    @contextlib.contextmanager
    def _serve(self, served: Served) -> Iterator[Server]:
        yield VirtualServer(served, self.seed)


class VirtualServer:
    """Each load finds it idle."""

    def __init__(self, served: Served, seed: int) -> None:
        self._models = [
            SimulatedModel(
                name,
                gpu.times,
                (JITTER,),
                {"max_batch_size": served.max_batch_size, **served.batching},
            )
            for name, gpu in served.models.items()
        ]
        self._workers = [Workers(served.workers)]
        self._learns = served.learns
        self._capacity = served.capacity
        self._seeds = count(seed)

    def load(
        self,
        arrivals: Arrivals,
        mix: Sequence[MixEntry],
        seconds: float,
        *,
        warmup_s: float = WARMUP_S,
        interval_s: float = 0.25,
    ) -> Measured:
        """See ``Server``."""
        seed = next(self._seeds)
        # At the moments that a load test with this seed plans.
        before = warmup_times(arrivals, warmup_s, seed)
        times = warmup_s + np.concatenate([before, send_times(arrivals, seconds, seed)])
        result = simulate(
            self._models,
            self._workers,
            [Traffic(Trace(tuple(times.tolist())), mix)],
            warmup_s + seconds,
            seed=seed,
            learns=self._learns,
        )
        return _measured(result.window(warmup_s, warmup_s + seconds), interval_s)

    def highest_rate(self, mix: Sequence[MixEntry], start_rate: float) -> float:
        """See ``Server``."""

        def attempt(rate: float, seed: int, rule: Rule) -> Observed:
            # Not shorter than the rule wants it: no rate would pass.
            seconds = max(_TRIAL_REQUESTS / rate, rule.least_s)
            measured = self.load(Poisson(rate), mix, seconds)
            late = measured.offered - measured.in_time
            return Observed(Counts(measured.in_time, late, measured.seconds))

        return find_rate(attempt, start_rate, Rule(), tolerance=_TOLERANCE).rate

    def offline_rate(self, mix: Sequence[MixEntry]) -> float:
        """See ``Server``: known here."""
        return self._capacity


def _measured(result: SimulationResult, interval_s: float) -> Measured:
    errors = result.prediction_errors
    in_time = result.series(interval_s)["in_time"]
    return Measured(
        offered=result.offered,
        in_time=result.in_time,
        late=result.late,
        seconds=result.duration_s,
        late_device_share=result.late_device_share,
        prediction_p99=float(np.quantile(errors, 0.99)) if len(errors) else float("nan"),
        mean_batch_rows=result.mean_batch_rows,
        send_lag_p99_s=0.0,
        goodput_by_interval=tuple((in_time / interval_s).tolist()),
    )
