"""What the broker counts, as Prometheus wants it. Pure.

``docs/metrics.md`` says what each means, and what to alarm on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder

from batchyard.clients.gateways.health import obstacles

MODEL_STATES = ("START", "LOADING", "AVAILABLE", "UNLOADING", "END")
WORKER_STATES = ("STARTING", "READY", "BUSY", "STOPPING", "FAILED")
# Upper bounds of batch_rows: sizes that models are run at.
BATCH_ROWS = tuple(1 << i for i in range(11))

_MODEL = ("model", "version")
_SIGNATURE = ("model", "version", "signature")
_WORKER = ("worker", "device")


class Exposition:
    """One look at a server: what its broker told, or None; its GPUs; its version."""

    def __init__(
        self,
        metrics: Mapping[str, Any] | None,
        devices: Iterable[Mapping[str, Any]],
        version: str,
    ) -> None:
        self._metrics = metrics
        self._devices = list(devices)
        self._version = version

    def encode(self, accept: str) -> tuple[bytes, str]:
        """The text, and its content type, in the format that the header Accept asks for."""
        encoder, content_type = choose_encoder(accept)
        # It asks for no more than ``collect``.
        return encoder(self), content_type

    def collect(self) -> Iterator[Metric]:
        """All metrics."""
        metrics = self._metrics
        yield _gauge("up", "Whether the broker answers.", [((), metrics is not None)])
        ready = not obstacles(metrics)
        yield _gauge("ready", "Whether every model can be asked, as /readyz says.", [((), ready)])
        yield _gauge("build_info", "1, by version.", [((self._version,), 1)], ("version",))
        yield from _of_devices(self._devices)
        if metrics is not None:
            yield from _of_broker(metrics)
            yield from _of_workers(metrics["workers"])
            yield from _of_models(metrics["models"])
            yield from _of_signatures(metrics["models"], metrics["bounds"]["seconds"])


def _of_broker(metrics: Mapping[str, Any]) -> Iterator[Metric]:
    broker, arena, regions = metrics["broker"], metrics["arena"], metrics["regions"]
    yield _gauge(
        "broker_start_time_seconds",
        "When the broker started, in seconds since 1970: counters began at zero then.",
        [((), broker["epoch"] / 1e9)],
    )
    yield _counter("broker_cpu_seconds", "CPU time of the broker.", [((), broker["cpu_s"])])
    yield _gauge("draining", "Whether the server is shutting down.", [((), broker["draining"])])
    yield _gauge("clients", "Clients that are connected, or wait.", [((), broker["clients"])])
    yield _counter(
        "replies_dropped",
        "Answers that were dropped because their client does not read.",
        [((), broker["replies_dropped"])],
    )
    yield _counter(
        "strangers_refused",
        "Clients that came by TCP with a key that is not allowed.",
        [((), broker["strangers_refused"])],
    )
    used, free = arena["used_bytes"], arena["bytes"] - arena["used_bytes"]
    yield _gauge(
        "arena_bytes",
        "Shared memory that batches live in.",
        [(("used",), used), (("free",), free)],
        ("state",),
    )
    yield _gauge(
        "regions",
        "Shared memories of clients on this machine.",
        [(("used",), regions["used"]), (("free",), regions["max"] - regions["used"])],
        ("state",),
    )


def _of_workers(workers: Sequence[Mapping[str, Any]]) -> Iterator[Metric]:
    keys = [(str(worker["id"]), worker["device"]) for worker in workers]
    yield _gauge(
        "worker_state",
        "1 for the state that a worker is in.",
        [
            ((*key, state), worker["state"] == state)
            for key, worker in zip(keys, workers, strict=True)
            for state in WORKER_STATES
        ],
        (*_WORKER, "state"),
    )
    for name, field, help_text in (
        ("worker_busy_seconds", "busy_s", "Time that a worker ran batches."),
        ("worker_restarts", "restarts", "Processes of a worker that ended and were replaced."),
        ("worker_batches", "batches", "Batches of a worker's process."),
    ):
        samples = [(key, worker[field]) for key, worker in zip(keys, workers, strict=True)]
        yield _counter(name, help_text, samples, _WORKER)


def _of_models(models: Sequence[Mapping[str, Any]]) -> Iterator[Metric]:
    keyed = [((model["name"], str(model["version"])), model) for model in models]
    yield _gauge(
        "model_state",
        "1 for the state that a version is in.",
        [
            ((*key, state), model["state"] == state)
            for key, model in keyed
            for state in MODEL_STATES
        ],
        (*_MODEL, "state"),
    )
    samples = [(key, model["queue_rows"]) for key, model in keyed]
    yield _gauge("queue_rows", "Rows that wait.", samples, _MODEL)
    for name, field, help_text in (
        ("rows", "rows", "Rows that batches had."),
        ("padding_rows", "padding_rows", "Rows that ran in vain, for a size that is allowed."),
        ("model_busy_seconds", "busy_s", "Time that devices ran a version's batches."),
        ("late_seconds", "late_s", "Of that, time for answers that came after their deadline."),
        ("shed", "shed", "Requests refused by queue_delay_target_micros: the queue stood."),
    ):
        yield _counter(name, help_text, [(key, model[field]) for key, model in keyed], _MODEL)
    yield _counter(
        "deadline_misses",
        "Requests that missed their deadline, by why.",
        [
            ((*key, cause), count)
            for key, model in keyed
            for cause, count in model["deadline_misses"].items()
        ],
        (*_MODEL, "cause"),
    )
    predicted = [(key, model["prediction"]["count"]) for key, model in keyed]
    yield _counter("predicted_batches", "Batches whose time was predicted.", predicted, _MODEL)
    yield _gauge(
        "prediction_error_ratio",
        "How far predictions of the last thousand were off: abs(predicted - measured) / measured.",
        [
            ((*key, percentile.removeprefix("p")), model["prediction"][percentile])
            for key, model in keyed
            if model["prediction"]["count"]
            for percentile in ("p50", "p99")
        ],
        (*_MODEL, "percentile"),
    )
    yield _batch_rows(keyed)


def _batch_rows(keyed: Iterable[tuple[tuple[str, ...], Mapping[str, Any]]]) -> Metric:
    family = HistogramMetricFamily("batchyard_batch_rows", "Rows of each batch.", labels=_MODEL)
    for key, model in keyed:
        batches = {int(rows): count for rows, count in model["batch_rows"].items()}
        buckets = [
            (f"{bound:.1f}", sum(count for rows, count in batches.items() if rows <= bound))
            for bound in BATCH_ROWS
        ]
        buckets.append(("+Inf", sum(batches.values())))
        family.add_metric(key, buckets, sum(rows * count for rows, count in batches.items()))
    return family


def _of_signatures(
    models: Sequence[Mapping[str, Any]], bounds: Sequence[float]
) -> Iterator[Metric]:
    keyed = [
        ((model["name"], str(model["version"]), measures["signature"]), measures)
        for model in models
        for measures in model["measures"]
    ]
    yield _counter(
        "requests",
        "Requests by the code of their answer.",
        [
            ((*key, code), count)
            for key, measures in keyed
            for code, count in sorted(measures["codes"].items())
        ],
        (*_SIGNATURE, "code"),
    )
    for name, help_text in (
        ("request_seconds", "From a request's arrival to its outputs, where it got any."),
        ("queue_seconds", "From a request's arrival to the hand-over of its batch to a worker."),
        ("execution_seconds", "How long a batch ran."),
    ):
        family = HistogramMetricFamily(f"batchyard_{name}", help_text, labels=_SIGNATURE)
        for key, measures in keyed:
            counts = accumulate(measures[name]["counts"])
            edges = [*(str(float(bound)) for bound in bounds), "+Inf"]
            family.add_metric(key, list(zip(edges, counts, strict=True)), measures[name]["sum"])
        yield family


def _of_devices(devices: Sequence[Mapping[str, Any]]) -> Iterator[Metric]:
    labels = ("device", "name")
    keyed = [((device["device"], device["name"]), device) for device in devices]
    yield _gauge(
        "gpu_utilization_ratio",
        "Share of the last moment in which the GPU ran something, from 0 to 1.",
        [
            (key, device["utilization"])
            for key, device in keyed
            if device["utilization"] is not None
        ],
        labels,
    )
    yield _gauge(
        "gpu_memory_bytes",
        "Memory of the GPU, of all that use it.",
        [
            ((*key, state), value)
            for key, device in keyed
            for state, value in (
                ("used", device["memory_used_bytes"]),
                ("free", device["memory_bytes"] - device["memory_used_bytes"]),
            )
        ],
        (*labels, "state"),
    )


_Samples = Iterable[tuple[Sequence[str], float]]


def _gauge(name: str, help_text: str, samples: _Samples, labels: Sequence[str] = ()) -> Metric:
    family = GaugeMetricFamily(f"batchyard_{name}", help_text, labels=labels)
    for key, value in samples:
        family.add_metric(key, value)
    return family


def _counter(name: str, help_text: str, samples: _Samples, labels: Sequence[str] = ()) -> Metric:
    """``_total`` comes behind its name."""
    family = CounterMetricFamily(f"batchyard_{name}", help_text, labels=labels)
    for key, value in samples:
        family.add_metric(key, value)
    return family
