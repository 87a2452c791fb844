"""How much of the devices' time each model had lately, and whether that is more than its share."""

from __future__ import annotations

import math
from collections.abc import Iterable

from batchyard.broker.catalog import ServedModel
from batchyard.broker.lane import Lane

# What was used so long ago counts for a third.
_MEMORY_S = 1.0
# It fades in steps.
_FADING_S = 0.01


class Shares:
    """Weighs models that wait for the same devices."""

    def __init__(self) -> None:
        self._used: dict[ServedModel, float] = {}
        self._at = 0.0

    def note(self, model: ServedModel, seconds: float, now: float) -> None:
        """A batch of a model was handed over, which will run for so long."""
        if now - self._at > _FADING_S:
            faded = math.exp((self._at - now) / _MEMORY_S)
            # What has faded away is forgotten.
            self._used = {m: s * faded for m, s in self._used.items() if s * faded > 1e-9}
            self._at = now
        self._used[model] = self._used.get(model, 0.0) + seconds

    def hogs(self, lanes: Iterable[Lane], now: float) -> set[ServedModel]:
        """Models of these lanes that had more than their share while others wait, and still have
        more waiting than goes into a batch, or had to drop some."""
        lanes = list(lanes)
        models = {lane.model for lane in lanes}
        if len(models) < 2:
            return set()
        used = sum(self._used.get(model, 0.0) for model in models)
        shares = sum(model.share for model in models)
        greedy = {lane.model for lane in lanes if lane.queued_rows > lane.max_rows}
        return {
            model
            for model in models
            if (model in greedy or now - model.shed_at < _MEMORY_S)
            and self._used.get(model, 0.0) * shares > model.share * used
        }
