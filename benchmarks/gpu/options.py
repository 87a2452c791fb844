"""How GPU measurements are made: what the command line says, and what follows from it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from batchyard.benchmarks.failures import BenchmarkFailed
from batchyard.benchmarks.gpu.subjects import Group
from batchyard.pool.inventory import VisibleDevice, read_inventory, visible_devices

# A server's worker and the bare loop have the card's memory at the same time, if not its cores.
FRACTION = 0.4
# What several workers share: their contexts need the rest.
SHARED_FRACTION = 0.88


@dataclass(frozen=True, slots=True)
class Options:
    """What ``batchyard bench gpu`` was told."""

    device: str
    seconds: float
    repeat: int
    batch: int
    deadline_s: float
    """Of the server rate: 99 % are to be answered within it."""
    clients: int
    """Processes that send requests."""
    workers: tuple[int, ...]
    card: VisibleDevice | None
    """None on the CPU."""

    def visible_to(self, group: Group) -> str:
        """``CUDA_VISIBLE_DEVICES`` of its bare loop: what the worker has."""
        return "-1" if self.card is None or not group.on_card else self.card.uuid

    def worker(self, group: Group, fraction: float = FRACTION) -> dict[str, Any]:
        """Keys of ``[[pool.workers]]``. A model that needs no card has the CPU."""
        if self.card is None or not group.on_card:
            return {"device": "cpu"}
        return {"device": self.card.uuid, "per_process_gpu_memory_fraction": fraction}


def usual_clients() -> int:
    """A client process for every four cores, which are the server's too."""
    return max(1, min(4, len(os.sched_getaffinity(0)) // 4))


def find_card(device: str) -> VisibleDevice | None:
    """The one card that is meant; None is the CPU. Raises BenchmarkFailed when it is not there."""
    inventory = read_inventory()
    visible = visible_devices(inventory, os.environ)
    if device == "cpu":
        return None
    for card in visible.devices:
        if device in (card.uuid, card.label):
            return card
    there = ", ".join(map(str, visible.devices)) or f"no GPU: {visible.note}"
    raise BenchmarkFailed(
        f"--device {device}: there is {there}. --device cpu tries the benchmark out without one"
    )
