"""TensorFlow Serving's metrics, from what is known here."""

from __future__ import annotations

import shutil
import subprocess
from typing import Any

import pytest

from batchyard.clients.gateways.rest.latencies import BOUNDS_US, Latencies
from batchyard.clients.gateways.rest.monitoring_page import monitoring_page

_PROMTOOL = shutil.which("promtool")


def model(name: str, codes: dict[str, int], counts: list[int], batches: int = 1) -> dict[str, Any]:
    measures = {"codes": codes, "execution_seconds": {"counts": counts, "sum": 0.25}}
    return {"name": name, "batches": batches, "busy_s": 0.5, "measures": [measures]}


METRICS = {
    "bounds": {"seconds": [0.001, 0.5]},
    "models": [
        model("m", {"OK": 3}, [1, 2, 0], 3),
        # Another version of it.
        model("m", {"OK": 1, "NOT_FOUND": 2}, [0, 0, 1], 1),
        model('odd "\\\n', {"OK": 0}, [0, 0, 0], 0),
    ],
}


def test_what_the_broker_counted_is_summed_over_versions() -> None:
    page = monitoring_page(METRICS, Latencies(), None)
    lines = page.splitlines()
    assert "# TYPE :tensorflow:serving:request_count counter" in lines
    assert ':tensorflow:serving:request_count{model_name="m",status="OK"} 4' in lines
    assert ':tensorflow:serving:request_count{model_name="m",status="NOT_FOUND"} 2' in lines
    runtime = 'model_name="m",API="Predict",runtime="TF1"'
    for tail in (
        f'_bucket{{{runtime},le="1000"}} 1',
        f'_bucket{{{runtime},le="500000"}} 3',
        f'_bucket{{{runtime},le="+Inf"}} 4',
        f"_sum{{{runtime}}} 500000.0",
        f"_count{{{runtime}}} 4",
    ):
        assert f":tensorflow:serving:runtime_latency{tail}" in lines
    assert ":tensorflow:core:graph_runs{} 4" in lines
    assert ":tensorflow:core:graph_run_time_usecs{} 1500000" in lines


def test_latencies_have_the_buckets_of_tensorflow_serving() -> None:
    latencies = Latencies()
    for microseconds in (9.0, 10.0, 17.0, 1e12):
        latencies.add("m", "predict", microseconds)
    lines = monitoring_page(None, latencies, None).splitlines()
    labels = 'model_name="m",API="predict",entrypoint="REST"'
    name = ":tensorflow:serving:request_latency"
    assert lines[:4] == [
        f"# TYPE {name} histogram",
        f'{name}_bucket{{{labels},le="10"}} 1',
        f'{name}_bucket{{{labels},le="18"}} 3',
        f'{name}_bucket{{{labels},le="32.4"}} 3',
    ]
    assert lines[-3:] == [
        f'{name}_bucket{{{labels},le="+Inf"}} 4',
        f"{name}_sum{{{labels}}} {1e12 + 36}",
        f"{name}_count{{{labels}}} 4",
    ]
    assert len(BOUNDS_US) == 33


def test_processes_that_share_a_port_are_told_apart() -> None:
    latencies = Latencies()
    latencies.add("m", "classify", 5.0)
    assert 'entrypoint="REST",process="77",le="10"} 1' in monitoring_page(None, latencies, "77")


def test_names_are_escaped() -> None:
    lines = monitoring_page(METRICS, Latencies(), None).splitlines()
    name = r'model_name="odd \"\\\n"'
    assert f':tensorflow:serving:request_count{{{name},status="OK"}} 0' in lines


@pytest.mark.skipif(_PROMTOOL is None, reason="needs Prometheus' promtool")
def test_prometheus_reads_it() -> None:
    assert _PROMTOOL is not None
    latencies = Latencies()
    latencies.add("m", "predict", 5.0)
    page = monitoring_page(METRICS, latencies, None)
    told = subprocess.run(
        [_PROMTOOL, "check", "metrics"], input=page, capture_output=True, text=True, timeout=30
    )
    # 3: it was read, and there are opinions on its names.
    assert told.returncode in (0, 3), told.stderr
    assert "error while linting" not in told.stderr
