"""Answers of ``Client.metrics()`` as a broker would give them, to be changed by tests."""

from __future__ import annotations

import copy
from typing import Any

BOUNDS_S = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1]


def histogram(counts: list[int] | None = None, sum_s: float = 0.0) -> dict[str, Any]:
    """One of ``BOUNDS_S``; of nothing, if no counts are given."""
    return {"counts": counts or [0] * (len(BOUNDS_S) + 1), "sum": sum_s}


def measure(signature: str = "serving_default", **over: Any) -> dict[str, Any]:
    """What is counted of a signature."""
    return {
        "signature": signature,
        "codes": {},
        "request_seconds": histogram(),
        "queue_seconds": histogram(),
        "execution_seconds": histogram(),
        **over,
    }


def model(name: str = "double", version: int = 1, **over: Any) -> dict[str, Any]:
    """A model that nobody has asked yet."""
    return {
        "name": name,
        "version": version,
        "labels": [],
        "state": "AVAILABLE",
        "is_current": True,
        "error": "",
        "signatures": ["serving_default"],
        "queue_rows": 0,
        "requests": 0,
        "batches": 0,
        "batch_rows": {},
        "rows": 0,
        "padding_rows": 0,
        "deadline_misses": {"refused": 0, "dropped": 0, "expired": 0, "late": 0},
        "prediction": {"count": 0, "p50": 0.0, "p99": 0.0},
        "measures": [measure()],
        **over,
    }


def worker(id: int = 0, **over: Any) -> dict[str, Any]:
    """One that is idle."""
    return {
        "id": id,
        "pid": 100 + id,
        "device": "cpu",
        "state": "READY",
        "restarts": 0,
        "batches": 0,
        "busy_s": 0.0,
        **over,
    }


def sample(
    uptime_s: float,
    models: list[dict[str, Any]] | None = None,
    workers: list[dict[str, Any]] | None = None,
    **broker: Any,
) -> dict[str, Any]:
    """An answer; of one idle model and one idle worker, if nothing else is said."""
    return {
        "broker": {
            "pid": 42,
            "epoch": 7,
            "uptime_s": uptime_s,
            "cpu_s": 0.0,
            "clients": 1,
            "draining": False,
            "replies_dropped": 0,
            **broker,
        },
        "workers": [worker()] if workers is None else workers,
        "models": [model()] if models is None else models,
        "arena": {"bytes": 512 * 2**20, "used_bytes": 0},
        "bounds": {"seconds": BOUNDS_S},
    }


def busy_pair() -> tuple[dict[str, Any], dict[str, Any]]:
    """Two answers, two seconds apart, with something of everything in between."""
    before = sample(
        10.0,
        [
            model(
                "double",
                batches=10,
                batch_rows={"1": 5, "32": 5},
                rows=165,
                measures=[
                    measure(
                        codes={"OK": 165},
                        request_seconds=histogram([100, 60, 5, 0, 0, 0, 0, 0], 0.2),
                        execution_seconds=histogram([0, 10, 0, 0, 0, 0, 0, 0], 0.015),
                    )
                ],
            ),
            model("<script>alert(1)</script>", 3),
        ],
        [worker(0, busy_s=3.0, batches=10), worker(1, device="gpu:0")],
        cpu_s=1.0,
    )
    after = copy.deepcopy(before)
    after["broker"] |= {"uptime_s": 12.0, "cpu_s": 1.5, "clients": 3}
    after["models"][0] |= {
        "queue_rows": 12,
        "batches": 110,
        "batch_rows": {"1": 5, "16": 20, "32": 85},
        "rows": 165 + 20 * 16 + 80 * 32,
        "padding_rows": 120,
        "deadline_misses": {"refused": 3, "dropped": 2, "expired": 1, "late": 80},
        "prediction": {"count": 90, "p50": 0.04, "p99": 0.3},
        "measures": [
            measure(
                codes={"OK": 2985, "DEADLINE_EXCEEDED": 6, "UNAVAILABLE": 54},
                request_seconds=histogram([100, 160, 1005, 1500, 200, 15, 4, 1], 20.2),
                queue_seconds=histogram([2000, 600, 220, 0, 0, 0, 0, 0], 4.0),
                execution_seconds=histogram([0, 10, 50, 50, 0, 0, 0, 0], 0.7),
            )
        ],
    }
    after["workers"][0] |= {"busy_s": 4.6, "batches": 110, "state": "BUSY"}
    after["workers"][1] |= {"restarts": 1, "pid": 333}
    after["arena"]["used_bytes"] = 128 * 2**20
    return before, after
