"""Batches on the card: one thread starts them, another waits for the end of each.

The card computes one batch while the next is on its way there, and the outputs of the one before on
their way back: see docs/decisions/0016.
"""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from batchyard.pool.gpu.card import Card, CardBatch
from batchyard.pool.gpu.driver import CudaError
from batchyard.pool.runtimes.base import Array, LoadedModel
from batchyard.pool.runtimes.out_of_memory import give_back_cached_memory
from batchyard.pool.worker.answers import Answers
from batchyard.pool.worker.batch_inputs import gather, views
from batchyard.pool.worker.failed_batches import answer_to, tell_of
from batchyard.pool.worker.intake import Assignment
from batchyard.pool.worker.landing import Landing
from batchyard.pool.worker.turns import Turns
from batchyard.wire import work
from batchyard.wire.errors import ResourceExhausted


@dataclass(slots=True)
class _Started:
    """A batch that is under way, or that raised; ``failed`` is then its answer."""

    assignment: Assignment
    # What computes must not be freed meanwhile, though its version may be unloaded.
    model: LoadedModel
    gather_s: float = 0.0
    batch: CardBatch | None = None
    landing: Landing | None = None
    failed: work.Failed | None = None


class CardExecution:
    """Batches of models with ``device_arrays``. How many are under way is for the broker to say."""

    def __init__(
        self,
        card: Card,
        answers: Answers,
        running: Turns,
        before_failure: Callable[[work.Failed], None] = lambda failed: None,
    ) -> None:
        """``running`` bounds how many models are called at once.

        ``before_failure`` is called before a batch is answered as failed.
        """
        self._card = card
        self._answers = answers
        self._running = running
        self._before_failure = before_failure
        self._under_way: queue.SimpleQueue[_Started | None] = queue.SimpleQueue()

    def start(self, assignment: Assignment, model: LoadedModel) -> None:
        """Has the card do all of it, and returns.

        Called by one thread if a model is called by one only. Those that wait for their outputs,
        as TensorFlow's functions do, are called by several: then the next batch is on its way
        meanwhile.
        """
        started = _Started(assignment, model)
        try:
            self._start(started)
        except BaseException as error:
            # Not the error itself: what it holds of the card's memory is to be free.
            started.failed = answer_to(assignment.execute, error)
        self._under_way.put(started)

    def _start(self, started: _Started) -> None:
        execute = started.assignment.execute
        began = time.perf_counter()
        gather(started.assignment)
        started.gather_s = time.perf_counter() - began
        batch = started.batch = begin(self._card, views(started.assignment))
        with self._running:
            outputs = started.model.run(execute.signature, batch.arrays)
            landing = started.landing = Landing(outputs, started.assignment)
            batch.bring(outputs, landing.room)
            landing.settle()

    def finish_all(self) -> None:
        """Answers batches in the order in which they were started, until ``end``.

        On a thread of its own.
        """
        self._card.driver.make_current()
        # Models may capture graphs when they are called.
        self._card.driver.bear_captures()
        while (started := self._under_way.get()) is not None:
            self._finish(started)
            # Not while waiting for the next one.
            del started

    def end(self) -> None:
        """Has ``finish_all`` return once it has answered all that was started."""
        self._under_way.put(None)

    def _finish(self, started: _Started) -> None:
        execute = started.assignment.execute
        try:
            answer, fds = self._wait(started)
        except BaseException as error:
            answer, fds = answer_to(execute, error), []
            self._abandon(started)
        if isinstance(answer, work.Failed):
            self._before_failure(answer)
        self._answers.answer(answer, fds)
        if isinstance(answer, work.Failed):
            tell_of(execute, answer)

    def _wait(self, started: _Started) -> tuple[work.Done | work.Failed, list[int]]:
        batch, landing = started.batch, started.landing
        if started.failed is not None or batch is None or landing is None:
            assert started.failed is not None
            self._abandon(started)
            return started.failed, []
        batch.wait()
        execute = started.assignment.execute
        if execute.replies:
            self._answers.replying(execute)
        placed, fds, replied = landing.place()
        done = work.Done(
            execute.batch_id, placed, bool(fds), replied, False, batch.seconds, started.gather_s
        )
        return done, fds

    def _abandon(self, started: _Started) -> None:
        """Waits until the card neither reads nor writes the block, which is given away then."""
        if started.batch is not None:
            # What the card says of it is in the answer, or it said so of another batch.
            with contextlib.suppress(CudaError):
                started.batch.abandon()
        if started.landing is not None:
            started.landing.close()


def begin(card: Card, inputs: Mapping[str, Array]) -> CardBatch:
    """``Card.begin``; what frameworks keep unused of the card's memory goes before a batch does."""
    try:
        return card.begin(inputs)
    except ResourceExhausted:
        give_back_cached_memory()
        return card.begin(inputs)
