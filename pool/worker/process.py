"""What a worker process has: its models, and the threads that run them."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from batchyard.pool.runtimes.base import LoadedModel
from batchyard.pool.runtimes.out_of_memory import give_back_cached_memory
from batchyard.pool.worker.answers import Answers
from batchyard.pool.worker.card_execution import CardExecution
from batchyard.pool.worker.execution import serve
from batchyard.pool.worker.intake import Ended, Intake
from batchyard.pool.worker.loading import load
from batchyard.pool.worker.quiet import quietly
from batchyard.pool.worker.turns import Turns, TurnsOnCard
from batchyard.pool.worker.worker_card import NO_CARD, WorkerCard
from batchyard.wire import control, log, work
from batchyard.wire.arena import Mapping
from batchyard.wire.control import WorkerSettings
from batchyard.wire.link import Link, LinkClosed
from batchyard.wire.log import LogSettings
from batchyard.wire.work import Ready

# How long a function that runs in the interpreter may keep it from the thread that answers for the
# batch before. Python's own 5 ms would add to latencies; so short, it costs about nothing.
_SWITCH_INTERVAL_S = 0.0005
# How long what models have registered for the process's end may take.
_GOODBYE_S = 2.0


class Worker:
    """The models of this process, and the threads that run them."""

    def __init__(
        self,
        settings: WorkerSettings,
        link: Link,
        arena: Mapping,
        tell_failure: Callable[[str], None] = lambda reason: None,
    ) -> None:
        """``tell_failure`` hears why the process is about to end, where it is not told to."""
        self._settings = settings
        self._tell_failure = tell_failure
        self._models: dict[tuple[str, int], LoadedModel] = {}
        self._answers = Answers(link)
        self._intake = Intake(
            link, arena.memory, self._answers, self._gather_ahead, on_unload=self._unload
        )
        self._arena = arena
        self._card = NO_CARD
        self._on_card: CardExecution | None = None
        self._finishing: threading.Thread | None = None
        # Models that run at once; there may be a thread more, see _gather_ahead.
        self._running = Turns(settings.concurrent_batches)
        self._threads: list[threading.Thread] = []
        self._loaded = False

    def load(self, tell: Callable[[float, str], None]) -> None:
        """Loads the models, and tells the broker. Raises CannotServe.

        ``tell`` hears which share of all is done, and what comes next in words.
        """
        reports = []
        if self._settings.device != "cpu":
            tell(0.0, "page-locking shared memory")
            self._card = WorkerCard.open(self._arena.memory)
        with quietly() if self._settings.loads_quietly else contextlib.nullcontext():
            for i, source in enumerate(self._settings.models):

                def tell_of_model(share: float, what: str, i: int = i) -> None:
                    tell((i + share) / len(self._settings.models), what)

                model, report = load(source, self._settings, tell_of_model, self._card)
                self._models[source.name, source.version] = model
                reports.append(report)
            # What models are made of stays: the collector need not look at it with every batch.
            gc.collect()
            gc.freeze()
        self._loaded = True
        self._answers.ready(Ready(self._settings.device, tuple(reports)))

    def serve(self) -> None:
        """Serves on this thread and on as many more as batches may run at once. Raises Ended."""
        threads = self._settings.concurrent_batches
        models = self._models.values()
        is_any_thread = all(model.any_thread for model in models)
        if self._settings.device != "cpu" and is_any_thread:
            self._running = TurnsOnCard(threads)
            threads += 1
        if self._card.card is not None and any(model.device_arrays for model in models):
            self._on_card = CardExecution(
                self._card.card, self._answers, self._running, self._look_at_card
            )
            self._finishing = self.start(self._on_card.finish_all)
            sys.setswitchinterval(_SWITCH_INTERVAL_S)
            if not is_any_thread:
                # This one starts all batches: on the card they overlap anyway, and frameworks keep
                # settings, such as PyTorch's inference_mode, by thread.
                threads = 1
        for _ in range(threads - 1):
            self._threads.append(self.start(self._serve))
        self._serve()

    def join(self) -> None:
        """Waits for the threads that serve, and those that free models, when all is over.

        TensorFlow aborts the process when the interpreter ends while one of them is inside it.
        """
        # The list may grow meanwhile: one that serves may start one that frees.
        for thread in self._threads:
            thread.join()
        # Nobody starts anything any more.
        if self._on_card is not None and self._finishing is not None:
            self._on_card.end()
            self._finishing.join()

    def obey(self, supervisor: Link) -> NoReturn:
        """Does what the supervisor says, until it closes the link: then the process ends."""
        while True:
            try:
                packet, fds = supervisor.receive()
            except LinkClosed:
                self._end()
            # Without its descriptor, for which there was none left, the broker will miss us.
            if packet[0] == control.Kind.LINK and fds:
                self._intake.resume(Link.from_fd(fds[0]))
            elif packet[0] == control.Kind.LOG:
                log.configure(f"worker-{self._settings.worker_id}", LogSettings(*packet[1:]))

    def start(self, target: Callable[[], None]) -> threading.Thread:
        """Runs it on a thread of its own."""

        def run() -> None:
            try:
                target()
            except Ended:
                return
            except BaseException as error:
                # A worker that serves on fewer threads than the broker counts on would lose
                # batches.
                log.crashed(error)
                _exit(control.EXIT_FAILURE)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    def _serve(self) -> None:
        serve(
            self._intake,
            self._answers,
            self._models,
            self._running,
            self._on_card,
            self._look_at_card,
        )

    def _look_at_card(self, failed: work.Failed) -> None:
        """Ends the process where the card can be used no more.

        Unanswered batches are then the broker's to run again elsewhere. The one that broke the
        card it will find out as one that kills its worker.
        """
        if not self._card.is_lost:
            return
        log.error("card_lost", device=self._settings.device, reason=failed.message)
        self._tell_failure(f"the card's context is broken: {failed.message}")
        _exit(control.EXIT_FAILURE)

    def _gather_ahead(self) -> None:
        """Serves on one thread more, once a client has a region.

        It copies the next batch's rows out of regions while models run. But not with a model that
        minds on which thread it runs. And on a card there is one already.
        """
        if (
            self._on_card is None
            and not isinstance(self._running, TurnsOnCard)
            and all(model.any_thread for model in self._models.values())
        ):
            self._threads.append(self.start(self._serve))

    def _unload(self, name: str, version: int) -> None:
        self._answers.unloaded(name, version)
        model = self._models.pop((name, version), None)
        if model is None:
            return
        left = [model]
        del model

        def free() -> None:
            started = time.perf_counter()
            # The last to have it frees it: this thread, or the one that runs it still.
            left.clear()
            _give_memory_back()
            give_back_cached_memory()
            seconds = time.perf_counter() - started
            log.info("model_unloaded", model=name, version=version, unload_s=seconds)

        # Not on the thread that takes the next batch.
        self._threads.append(self.start(free))

    def _end(self) -> NoReturn:
        """Ends the process.

        When nothing runs, the main thread returns, so that what models have registered for the
        end of the process is done. But nobody waits for a batch, or for a model that loads: its
        supervisor is gone, or has no use for the answer.
        """
        if self._loaded and self._answers.idle:
            self._intake.end()
            time.sleep(_GOODBYE_S)
        _exit(control.EXIT_OK)


def _give_memory_back() -> None:
    """Has the C library return to the kernel what it keeps of freed memory, if it can."""
    # glibc: of a model with a variable of 24 MiB, it kept all.
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _exit(code: int) -> NoReturn:
    """Ends the process now, whatever its other threads do."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)
