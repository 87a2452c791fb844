"""A simulated worker: batches that it was handed run in their order, some at once."""

from __future__ import annotations

import heapq
import random
from collections.abc import Mapping

from batchyard.benchmarks.simulation.scenario import SimulatedModel


class Device:
    """As ``pool.execution``: a batch more than run at once is gathered meanwhile, and begins the
    moment that another ends."""

    def __init__(
        self,
        models: Mapping[str, SimulatedModel],
        concurrent_batches: int,
        speed: float,
        draw: random.Random,
    ) -> None:
        self._models = models
        self._speed = speed
        self._draw = draw
        # When each of those that run at once is free.
        self._free_at = [0.0] * concurrent_batches

    def run(self, model: str, rows: int, at: float) -> tuple[float, float]:
        """Takes a batch of padded rows in ``at`` that moment: when it begins, and ends."""
        start = max(self._free_at[0], at)
        end = start + self.seconds(model, rows, start)
        heapq.heapreplace(self._free_at, end)
        return start, end

    def seconds(self, model: str, rows: int, at: float) -> float:
        """How long a batch takes that begins at that moment; by chance, where it is disturbed."""
        simulated = self._models[model]
        seconds = simulated.times.seconds(rows) / self._speed
        for disturbance in simulated.disturbances:
            seconds *= disturbance.factor(self._draw, at)
        return seconds
