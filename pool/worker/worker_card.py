"""A GPU worker's card: opened at the start, looked at when a model raised."""

from __future__ import annotations

import time

from batchyard.pool.gpu.card import Card
from batchyard.pool.gpu.driver import CudaError, NoCuda
from batchyard.pool.runtimes.base import LoadedModel
from batchyard.wire import log


class WorkerCard:
    """The card, or why there is none: models that bring batches there themselves need none."""

    def __init__(self, card: Card | None, why_none: str = "") -> None:
        self.card = card
        self.why_none = why_none

    @classmethod
    def open(cls, arena: memoryview) -> WorkerCard:
        """Page-locks the arena, if that can be; says in the log whether it is."""
        started = time.perf_counter()
        try:
            card = Card.open(arena)
        except (NoCuda, CudaError) as error:
            log.warning("arena_not_page_locked", reason=error)
            return cls(None, str(error))
        if card.why_not_page_locked is None:
            seconds = time.perf_counter() - started
            log.info("arena_page_locked", nbytes=arena.nbytes, seconds=seconds)
        else:
            log.warning("arena_not_page_locked", reason=card.why_not_page_locked)
        return cls(card)

    def reads_in_place(self, model: LoadedModel) -> bool:
        """Whether a model may be given inputs where a client has them.

        A client's region is not page-locked: from there the driver copies to the card while a
        thread waits. What the worker copies into a page-locked arena first, the card takes itself.
        """
        if self.card is not None and model.device_arrays and not self.card.why_not_page_locked:
            return False
        return model.bears_changing_inputs

    @property
    def is_lost(self) -> bool:
        """Whether nothing more can be run on it by this process."""
        return self.card is not None and self.card.is_lost


# On a CPU.
NO_CARD = WorkerCard(None)
