"""What TensorFlow Serving's dashboards and alarms ask for, under its names. Pure.

Only what is known here is told: counts of requests and times of batches by the broker, times of
requests by this process. ``docs/metrics.md`` has Batchyard's own names, which say more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

from batchyard.clients.gateways.rest.latencies import BOUNDS_US, Latencies

_Labels = Sequence[tuple[str, str]]
_SERVING = ":tensorflow:serving"
_CORE = ":tensorflow:core"


def monitoring_page(
    metrics: Mapping[str, Any] | None, latencies: Latencies, process: str | None
) -> str:
    """The page; ``metrics`` is what the broker tells, or None.

    ``process`` names this process where several share a port: whoever reads the page gets one of
    them, and what each counts must not be taken for what another did.
    """
    lines = list(_request_latency(latencies, process))
    if metrics is not None:
        lines += _of_broker(metrics["models"], metrics["bounds"]["seconds"])
    return "".join(f"{line}\n" for line in lines)


def _request_latency(latencies: Latencies, process: str | None) -> Iterator[str]:
    name = f"{_SERVING}:request_latency"
    yield f"# TYPE {name} histogram"
    for (model, verb), counts, total in latencies:
        labels = [("model_name", model), ("API", verb), ("entrypoint", "REST")]
        if process is not None:
            labels.append(("process", process))
        yield from _histogram(name, labels, BOUNDS_US, counts, total)


def _of_broker(models: Iterable[Mapping[str, Any]], bounds_s: Sequence[float]) -> Iterator[str]:
    codes: dict[str, Counter[str]] = {}
    runs: dict[str, tuple[list[int], float]] = {}
    batches = 0
    busy_s = 0.0
    for model in models:
        name = model["name"]
        batches += model["batches"]
        busy_s += model["busy_s"]
        for measures in model["measures"]:
            codes.setdefault(name, Counter()).update(measures["codes"])
            run = measures["execution_seconds"]
            counts, total = runs.get(name, ([0] * len(run["counts"]), 0.0))
            added = [a + b for a, b in zip(counts, run["counts"], strict=True)]
            runs[name] = added, total + run["sum"]
    yield f"# TYPE {_SERVING}:request_count counter"
    for name, by_code in codes.items():
        for code, count in sorted(by_code.items()):
            labels = _labels([("model_name", name), ("status", code)])
            yield f"{_SERVING}:request_count{labels} {count}"
    yield f"# TYPE {_SERVING}:runtime_latency histogram"
    bounds_us = [bound * 1e6 for bound in bounds_s]
    for name, (counts, total) in runs.items():
        # TF1 is what it calls every runtime but TFRT.
        named = [("model_name", name), ("API", "Predict"), ("runtime", "TF1")]
        yield from _histogram(f"{_SERVING}:runtime_latency", named, bounds_us, counts, total * 1e6)
    for counter, value in (
        (f"{_SERVING}:batching_session:wrapped_run_count", batches),
        (f"{_CORE}:graph_runs", batches),
        (f"{_CORE}:graph_run_time_usecs", round(busy_s * 1e6)),
    ):
        yield f"# TYPE {counter} counter"
        yield f"{counter}{{}} {value}"


def _histogram(
    name: str, labels: _Labels, bounds: Sequence[float], counts: Sequence[int], total: float
) -> Iterator[str]:
    edges = [*(f"{bound:g}" for bound in bounds), "+Inf"]
    for edge, count in zip(edges, accumulate(counts), strict=True):
        yield f"{name}_bucket{_labels([*labels, ('le', edge)])} {count}"
    yield f"{name}_sum{_labels(labels)} {total}"
    yield f"{name}_count{_labels(labels)} {sum(counts)}"


def _labels(labels: _Labels) -> str:
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
