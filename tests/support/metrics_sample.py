"""What a broker tells by the query ``metrics``, with a number for everything, and two GPUs."""

from __future__ import annotations

import copy
from typing import Any

from batchyard.broker.measures import BOUNDS_S


def _histogram(*counts: int, sum_s: float) -> dict[str, Any]:
    return {"counts": [*counts, *[0] * (len(BOUNDS_S) + 1 - len(counts))], "sum": sum_s}


_MEASURES = {
    "signature": "serving_default",
    "codes": {"OK": 6, "UNAVAILABLE": 1},
    "request_seconds": _histogram(1, 2, 3, sum_s=0.0017),
    "queue_seconds": _histogram(6, sum_s=0.0003),
    "execution_seconds": _histogram(0, 2, sum_s=0.0003),
}
_MODEL = {
    "name": "m",
    "version": 3,
    "labels": [],
    "state": "AVAILABLE",
    "is_current": True,
    "error": "",
    "signatures": ["serving_default"],
    "queue_rows": 7,
    "requests": 7,
    "batches": 2,
    "batch_rows": {"2": 1, "4": 1},
    "rows": 6,
    "padding_rows": 2,
    "busy_s": 0.5,
    "late_s": 0.25,
    "refused": 1,
    "dropped": 2,
    "shed": 5,
    "prediction": {"count": 2, "p50": 0.1, "p99": 0.75},
    "deadline_misses": {"refused": 1, "dropped": 2, "expired": 3, "late": 4},
    "measures": [_MEASURES],
}
_WORKER = {
    "id": 0,
    "pid": 100,
    "device": "gpu:0",
    "state": "READY",
    "restarts": 2,
    "batches": 2,
    "busy_s": 0.5,
}
DEVICES: list[dict[str, Any]] = [
    {
        "device": "gpu:0",
        "name": "a card",
        "utilization": 0.5,
        "memory_used_bytes": 1 << 30,
        "memory_bytes": 3 << 30,
    },
    {
        "device": "gpu:1",
        "name": "a part of one",
        "utilization": None,
        "memory_used_bytes": 0,
        "memory_bytes": 1 << 30,
    },
]


def make_metrics(**over: Any) -> dict[str, Any]:
    """The answer; keys of ``over`` replace its own."""
    return copy.deepcopy(
        {
            "broker": {
                "pid": 99,
                "epoch": 1_700_000_000_500_000_000,
                "uptime_s": 60.0,
                "cpu_s": 1.5,
                "draining": False,
                "replies_dropped": 1,
                "strangers_refused": 2,
                "clients": 2,
            },
            "workers": [_WORKER],
            "models": [_MODEL],
            "arena": {"bytes": 1000, "used_bytes": 300},
            "regions": {"used": 1, "max": 64, "bytes": 1 << 28},
            "bounds": {"seconds": list(BOUNDS_S)},
            **over,
        }
    )


def make_model(name: str = "m", **over: Any) -> dict[str, Any]:
    """A version in such an answer."""
    return {**copy.deepcopy(_MODEL), "name": name, **over}


def make_worker(id: int = 0, **over: Any) -> dict[str, Any]:
    """A worker in such an answer."""
    return {**_WORKER, "id": id, **over}
