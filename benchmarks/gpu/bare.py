"""A bare loop's process, as the harness asks it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from batchyard.benchmarks.gpu.guarded import GuardedChild
from batchyard.benchmarks.gpu.subjects import Group

# XLA compiles a large network for each shape, and looks for the fastest of many kernels.
_LOAD_TIMEOUT_S = 900.0


class BareLoop(GuardedChild):
    """One framework on one device; see ``bare_loop``. What fails raises BenchmarkFailed."""

    def __init__(self, framework: str, visible: str, fraction: float) -> None:
        super().__init__("batchyard.benchmarks.gpu.bare_loop", framework, visible, str(fraction))

    def versions(self) -> dict[str, str]:
        """Of the framework and what it was built with; with ``device``, if it sees a card."""
        found: dict[str, str] = self.ask("versions")
        return found

    def load(self, key: str, group: Group, xla: bool, rows: int, exported: Path | None) -> None:
        """Makes a network, to be called with batches of so many rows."""
        how: dict[str, Any] = {"name": group.network.name, "precision": group.precision}
        how |= {"xla": xla, "path": None if exported is None else str(exported)}
        self.tell("load", key=key, shape=[rows, *group.network.row], **how)
        self.hear(_LOAD_TIMEOUT_S)

    def first_answer(self, key: str) -> Sequence[float]:
        """Of the network to the first row."""
        numbers: list[float] = self.ask("first_answer", key=key)
        return numbers

    def rows_per_s(self, way: str, key: str, seconds: float) -> float:
        """``resident`` or ``host_to_host``."""
        self.tell(way, key=key, seconds=seconds)
        # A batch may take longer than all that was asked for.
        return float(self.hear(_LOAD_TIMEOUT_S))

    def p50_us(self, key: str, seconds: float) -> float:
        """Of one row, from the host to the host."""
        return float(self.ask("p50", key=key, seconds=seconds))

    def launch_us(self, key: str) -> dict[str, float]:
        """What a call takes the ``host``, and the ``whole`` of it."""
        found: dict[str, float] = self.ask("launch", key=key)
        return found

    def batch_s(self, key: str, rows: int) -> float:
        """What a batch of so many rows takes."""
        self.tell("batch_s", key=key, rows=rows)
        return float(self.hear(_LOAD_TIMEOUT_S))
