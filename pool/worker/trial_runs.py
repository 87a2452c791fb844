"""Runs a model outside of serving, and says how long that took: for warm-up."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from batchyard.pool.gpu.card import Card, OutputSpec
from batchyard.pool.runtimes.base import Array, LoadedModel
from batchyard.pool.worker.card_execution import begin


class Ran(NamedTuple):
    """Outputs in host memory, and the seconds that the model took, or with a card, the card."""

    outputs: list[Array]
    seconds: float


# By signature, and inputs by name.
TrialRun = Callable[[str, Mapping[str, Array]], Ran]


def trial_run_of(model: LoadedModel, card: Card | None) -> TrialRun:
    """How that model is run in this worker."""
    if card is not None and model.device_arrays:
        return partial(_on_card, model, card)
    return partial(_in_host, model)


def _in_host(model: LoadedModel, signature: str, inputs: Mapping[str, Array]) -> Ran:
    started = time.perf_counter()
    outputs = model.run(signature, inputs)
    # All of it: an output may be made when it is looked at.
    found = [np.asarray(array) for _, array in outputs]
    return Ran(found, time.perf_counter() - started)


def _on_card(model: LoadedModel, card: Card, signature: str, inputs: Mapping[str, Array]) -> Ran:
    batch = begin(card, inputs)
    try:
        batch.bring(model.run(signature, batch.arrays), _room)
    except BaseException:
        batch.abandon()
        raise
    outputs = batch.wait()
    return Ran([array for _, array in outputs], batch.seconds)


def _room(specs: Sequence[OutputSpec]) -> list[Array]:
    return [np.empty(nbytes, np.uint8) for _, _, _, nbytes in specs]
