"""What Prometheus is told, from what the broker tells."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from support.debian import promtool
from support.metrics_sample import DEVICES, make_metrics, make_model
from support.prometheus_text import Scraped

from batchyard.clients.gateways.exposition import Exposition

PAGE = Path(__file__).parents[3] / "docs" / "metrics.md"
SIGNATURE = {"model": "m", "version": "3", "signature": "serving_default"}


def text_of(metrics: dict[str, Any] | None, devices: list[dict[str, Any]] = DEVICES) -> str:
    body, content_type = Exposition(metrics, devices, "1.2.3").encode("text/plain")
    assert content_type.startswith("text/plain")
    return body.decode()


def scraped(metrics: dict[str, Any] | None) -> Scraped:
    return Scraped(text_of(metrics))


def test_requests_and_how_long_they_took() -> None:
    found = scraped(make_metrics())
    assert found.value("batchyard_requests_total", code="OK", **SIGNATURE) == 6
    assert found.value("batchyard_requests_total", code="UNAVAILABLE", **SIGNATURE) == 1
    # Buckets of Prometheus have all that is below them.
    edges = ("0.0001", "0.0002", "0.0005", "60.0", "+Inf")
    name = "batchyard_request_seconds_bucket"
    assert [found.value(name, le=le, **SIGNATURE) for le in edges] == [1, 3, 6, 6, 6]
    assert found.value("batchyard_request_seconds_count", **SIGNATURE) == 6
    assert found.value("batchyard_request_seconds_sum", **SIGNATURE) == 0.0017
    assert found.value("batchyard_execution_seconds_count", **SIGNATURE) == 2


def test_batches_and_what_they_cost() -> None:
    found = scraped(make_metrics())
    edges = ("1.0", "2.0", "4.0", "+Inf")
    assert [found.value("batchyard_batch_rows_bucket", le=le) for le in edges] == [0, 1, 2, 2]
    assert found.value("batchyard_batch_rows_sum") == 6
    assert found.value("batchyard_padding_rows_total", model="m", version="3") == 2
    assert found.value("batchyard_prediction_error_ratio", percentile="99") == 0.75
    assert found.value("batchyard_deadline_misses_total", cause="expired") == 3


def test_the_server_its_workers_and_its_devices() -> None:
    found = scraped(make_metrics())
    assert found.value("batchyard_up") == found.value("batchyard_ready") == 1
    assert found.value("batchyard_build_info", version="1.2.3") == 1
    assert found.value("batchyard_broker_start_time_seconds") == 1_700_000_000.5
    assert found.value("batchyard_worker_state", worker="0", device="gpu:0", state="READY") == 1
    assert sum(found.values("batchyard_worker_state")) == 1
    assert found.value("batchyard_arena_bytes", state="free") == 700
    assert found.values("batchyard_gpu_utilization_ratio") == [0.5]
    assert found.value("batchyard_gpu_memory_bytes", device="gpu:0", state="free") == 2 << 30


def test_what_was_never_predicted_is_not_off_by_nothing() -> None:
    model = make_model(prediction={"count": 0, "p50": 0.0, "p99": 0.0})
    found = scraped(make_metrics(models=[model]))
    assert not found.values("batchyard_prediction_error_ratio")


def test_a_broker_that_does_not_answer() -> None:
    found = scraped(None)
    assert (found.value("batchyard_up"), found.value("batchyard_ready")) == (0, 0)
    assert found.value("batchyard_gpu_memory_bytes", device="gpu:1", state="used") == 0
    assert not found.values("batchyard_requests_total")


def test_names_of_models_cannot_break_the_format() -> None:
    name = 'a"b\\c\nd{}'
    found = scraped(make_metrics(models=[make_model(name)]))
    assert found.value("batchyard_queue_rows", model=name) == 7


@pytest.mark.parametrize("metrics", [make_metrics(), make_metrics(models=[], workers=[]), None])
def test_promtool_finds_nothing_wrong(metrics: dict[str, Any] | None) -> None:
    assert not promtool("check", "metrics", stdin=text_of(metrics))


def test_openmetrics_is_spoken_to_those_who_ask_for_it() -> None:
    accept = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"
    body, content_type = Exposition(make_metrics(), DEVICES, "1").encode(accept)
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


def test_every_metric_is_documented_with_its_type_and_labels() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([^|]*)\|", PAGE.read_text(), re.MULTILINE)
    documented = {f"batchyard_{name}": (kind, labels.strip()) for name, kind, labels in rows}
    told = {}
    for family in scraped(make_metrics()).families.values():
        name = family.name + "_total" * (family.type == "counter")
        told[name] = (family.type, {label for s in family.samples for label in s.labels} - {"le"})
    assert set(documented) == set(told)
    for name, (kind, labels) in told.items():
        said_kind, said = documented[name]
        assert said_kind == kind, name
        # Those of a whole section are said above its table.
        said_labels = set(re.findall(r"[a-z]+", re.sub(r": [a-z, ]+$|: [\d, ]+$", "", said)))
        assert said_labels <= labels <= said_labels | {"model", "version", "signature"}, name
