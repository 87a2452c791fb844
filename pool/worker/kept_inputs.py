"""Models that hold on to inputs after a batch: its block must not be given away meanwhile."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Mapping, Sequence

from batchyard.pool.runtimes.base import Array, LoadedModel
from batchyard.pool.worker.answers import Answers
from batchyard.pool.worker.intake import Assignment, Intake

Models = Mapping[tuple[str, int], LoadedModel]
References = list[weakref.ref[Array]]
# How often models are asked to let go of inputs while nothing runs: soon, then seldom.
_FIRST_PAUSE_S = 0.01
_LAST_PAUSE_S = 1.0
# How long a batch may hold on to inputs in a client's region before the client is answered.
_REGION_PATIENCE_S = 0.1


def kept_of(inputs: References, models: Models, in_region: bool) -> list[Array]:
    """The inputs' memory that something still reads, after models were asked to let go."""
    if not any(reference() is not None for reference in inputs):
        return []
    # It may only be a cycle that the garbage collector has not come to, or what waits for the
    # next call: while the arena is full, nothing else would see to it.
    until = time.monotonic() + (_REGION_PATIENCE_S if in_region else 0.0)
    while True:
        _let_go(models)
        gc.collect()
        kept = [array for reference in inputs if (array := reference()) is not None]
        if not kept or time.monotonic() >= until:
            return kept
        del kept
        # Whoever holds it does so on another thread.
        time.sleep(_FIRST_PAUSE_S)


def tell_when_released(answers: Answers, batch_id: int, kept: Sequence[Array]) -> References:
    """Has the broker told when nothing reads them any more; references to look at meanwhile."""
    left = len(kept)

    def released() -> None:
        nonlocal left
        left -= 1
        if not left:
            answers.released(batch_id)

    for array in kept:
        weakref.finalize(array, released).atexit = False
    return [weakref.ref(array) for array in kept]


def next_batch(
    intake: Intake, kept_inputs: References, models: Models
) -> tuple[Assignment, References]:
    """Waits for a batch; meanwhile has models let go of inputs. And those that are kept still."""
    pause_s = _FIRST_PAUSE_S
    while kept_inputs := [inputs for inputs in kept_inputs if inputs() is not None]:
        assignment = intake.poll(pause_s)
        if assignment is not None:
            return assignment, kept_inputs
        _let_go(models)
        pause_s = min(2 * pause_s, _LAST_PAUSE_S)
    return intake.next(), kept_inputs


def _let_go(models: Models) -> None:
    # A copy: a version may be unloaded meanwhile.
    for model in tuple(models.values()):
        model.let_go()
