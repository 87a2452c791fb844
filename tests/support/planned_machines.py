"""Machines that are not here, and plans for them: no card, two, four, an A100 in MIG instances."""

from __future__ import annotations

from typing import Any

import pytest

from batchyard.pool.devices import WorkerGroup, WorkerSlot, plan_workers
from batchyard.pool.inventory import Gpu, Inventory, MigDevice
from batchyard.wire.errors import ConfigurationError

NONE = Inventory(note="NVML library not found: no NVIDIA driver")
FOUR = Inventory(tuple(Gpu(i, f"GPU-{i}abc", "NVIDIA V100", 32768) for i in range(4)))
TWO = Inventory(FOUR.gpus[:2])
NEAR = Inventory(
    tuple(Gpu(i, uuid, "L4", 23034) for i, uuid in enumerate(("GPU-aa11", "GPU-aa22")))
)
INSTANCES = (MigDevice("MIG-1", 19968, (1, 0)), MigDevice("MIG-2", 9856, (5, 0)))
MIG = Inventory((Gpu(0, "GPU-a100", "NVIDIA A100", 40960, INSTANCES),))
CPUS = tuple(range(8))
GROWTH = {"gpu_memory_growth": True}
LIMIT = {"gpu_memory_limit_mb": 1024}


def group(device: str = "auto", fraction: float | None = None, **settings: Any) -> WorkerGroup:
    return WorkerGroup(device=device, per_process_gpu_memory_fraction=fraction, **settings)


def plan(
    *groups: WorkerGroup,
    inventory: Inventory = TWO,
    visible: str | None = None,
    cpus: tuple[int, ...] = CPUS,
) -> list[WorkerSlot]:
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    return plan_workers(groups, inventory, environ, cpus)


def assert_refused(start: str, words: str, *groups: WorkerGroup, **machine: Any) -> None:
    """The message begins with ``start`` and holds each of the ``words``, parted by ``|``."""
    with pytest.raises(ConfigurationError) as caught:
        plan(*groups, **machine)
    text = str(caught.value)
    assert text.startswith(start)
    assert [word for word in words.split("|") if word not in text] == []


def uuids(slots: list[WorkerSlot]) -> list[str]:
    return [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in slots]
