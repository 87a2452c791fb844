"""The overload benchmark's real servers: workers that sleep, asked by ``batchyard load``'s
generator."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any

from batchyard.benchmarks import served as server_process
from batchyard.benchmarks.failures import BenchmarkFailed
from batchyard.benchmarks.load import trials
from batchyard.benchmarks.load.plan import Arrivals, LoadPlan, MixEntry, Poisson
from batchyard.benchmarks.load.result import LoadResult
from batchyard.benchmarks.load.run import run_load
from batchyard.benchmarks.models import exported
from batchyard.benchmarks.overload_bench import WARMUP_S, Measured, Served, Server
from batchyard.clients import Client

_MOBILENET = "mobilenet"
_NAN = float("nan")
_COLUMNS = 4
_TRIAL_S = 20.0
_TENSOR = ("float32", (-1, _COLUMNS))


@dataclasses.dataclass(slots=True)
class ServedBench:
    """See ``overload_bench.Bench``."""

    seconds: float
    repeat: int
    seed: int
    is_simulated: bool = False

    def serve(self, served: Served) -> contextlib.AbstractContextManager[Server]:
        """See ``Bench``."""
        return self._serve(served)

    @contextlib.contextmanager
    def _serve(self, served: Served) -> Iterator[Server]:
        if not served.learns:
            raise BenchmarkFailed("a real server always learns: only the simulation can do without")
        batching = {"max_batch_size": served.max_batch_size, **served.batching}
        models = [
            server_process.Model(
                name, gpu.callable, batching, inputs={"x": _TENSOR}, outputs={"y": _TENSOR}
            )
            for name, gpu in served.models.items()
        ]
        with server_process.serve(models, workers=served.workers) as (_, ipc):
            yield RealServer(ipc, self.seed)


@contextlib.contextmanager
def serve_mobilenet(max_batch_size: int, seed: int) -> Iterator[tuple[str, Server]]:
    """MobileNetV2 on one thread of the CPU; its name, and the server. Raises ServerDidNotStart."""
    with exported(_MOBILENET) as folders:
        batching = {"max_batch_size": max_batch_size}
        model = server_process.Model(_MOBILENET, str(folders[_MOBILENET]), batching)
        with server_process.serve([model], **server_process.one_thread()) as (_, ipc):
            yield _MOBILENET, RealServer(ipc, seed)


class RealServer:
    """Loads come one after the other, from a process of their own."""

    def __init__(self, endpoint: str, seed: int) -> None:
        self._endpoint = endpoint
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
        plan = self._plan(mix, arrivals, seconds, warmup_s, interval_s)
        with Client(self._endpoint) as client:
            before = _totals(client.stats())
            result = run_load(plan)
            after = client.stats()
        return _measured(result, before, after, interval_s)

    def highest_rate(self, mix: Sequence[MixEntry], start_rate: float) -> float:
        """See ``Server``."""
        plan = self._plan(mix, Poisson(start_rate), _TRIAL_S)
        return trials.find(plan, offline=False, start_rate=start_rate, most_s=_TRIAL_S).rate

    def offline_rate(self, mix: Sequence[MixEntry]) -> float:
        """See ``Server``."""
        return max(trials.measure_offline(self._plan(mix, Poisson(1.0), 1.0)).values())

    def _plan(
        self,
        mix: Sequence[MixEntry],
        arrivals: Arrivals,
        seconds: float,
        warmup_s: float = WARMUP_S,
        interval_s: float = 0.25,
    ) -> LoadPlan:
        return LoadPlan(
            target=self._endpoint,
            mix=tuple(mix),
            arrivals=arrivals,
            concurrency=None,
            duration_s=seconds,
            warmup_s=warmup_s,
            seed=next(self._seeds),
            interval_s=interval_s,
        )


def _totals(stats: Mapping[str, Any]) -> dict[str, float]:
    """Device seconds over all models; NaN where the server does not count them."""
    return {
        key: sum(float(model.get(key, _NAN)) for model in stats["models"])
        for key in ("late_s", "busy_s")
    }


def _measured(
    result: LoadResult, before: Mapping[str, float], after: Mapping[str, Any], interval_s: float
) -> Measured:
    totals = _totals(after)
    spent = {key: totals[key] - before[key] for key in totals}
    batches = sum(result.batch_rows.values())
    rows = sum(size * number for size, number in result.batch_rows.items())
    return Measured(
        offered=result.planned,
        in_time=result.in_time,
        late=result.late,
        seconds=result.duration_s,
        late_device_share=spent["late_s"] / spent["busy_s"] if spent["busy_s"] else 0.0,
        prediction_p99=max(_prediction_p99(model) for model in after["models"]),
        mean_batch_rows=rows / batches if batches else _NAN,
        send_lag_p99_s=result.send_lag.quantile(0.99),
        goodput_by_interval=tuple(i.in_time / interval_s for i in result.intervals),
    )


def _prediction_p99(model: Mapping[str, Any]) -> float:
    """Of all that the server predicted since it started."""
    prediction = model.get("prediction") or {}
    return float(prediction["p99"]) if prediction.get("count") else _NAN
