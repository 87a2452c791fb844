"""What a worker tells the broker: answers, releases, readiness; to the broker that lives now.

A broker may die and be started anew. What was being said then is said to the next one, after the
packet that tells it what this worker still has (``work.Resumed``).
"""

from __future__ import annotations

import os
import threading
from collections import deque
from dataclasses import replace

from batchyard.wire import log, work
from batchyard.wire.errors import ResourceExhausted
from batchyard.wire.link import Link, LinkClosed

Answer = work.Done | work.Failed


class Answers:
    """Threads may share it. Nothing waits for the next broker: what cannot be sent is kept for it.

    An answer counts as given once the kernel took it. One that the broker did not come to read
    before it died is lost with it, and its requests come again from their clients.
    """

    def __init__(self, link: Link) -> None:
        """``link`` is closed by its owner, once ``resume`` has put another in its place."""
        self._link = link
        # Whoever has it sends. Never waited for in a finalizer: the garbage collector may run
        # one on the thread that has it.
        self._lock = threading.Lock()
        self._given: dict[int, work.Execute] = {}
        self._in_vain: dict[int, tuple[Answer, list[int]]] = {}
        # Batches whose outputs are being written into regions.
        self._replying: set[int] = set()
        # The blocks of batches whose inputs a model holds on to.
        self._kept: dict[int, tuple[int, int]] = {}
        self._released: deque[int] = deque()
        self._ready: work.Ready | None = None

    def given(self, execute: work.Execute) -> None:
        """A batch came: it is to be answered."""
        self._given[execute.batch_id] = execute

    def replying(self, execute: work.Execute) -> None:
        """Outputs of a batch are about to be written where ``replies`` say, if they say it still.

        After a change of brokers they do not: clients then have other regions.
        """
        with self._lock:
            if execute.replies:
                self._replying.add(execute.batch_id)

    @property
    def idle(self) -> bool:
        """Whether all batches that came are answered."""
        return not self._given

    @property
    def in_vain(self) -> int:
        """How many answers wait for the next broker."""
        return len(self._in_vain)

    def ready(self, ready: work.Ready) -> None:
        """Tells the broker, and every later one, that this worker takes batches."""
        with self._lock:
            self._ready = ready
            self._send(ready)
        self._send_released()

    def unloaded(self, model: str, version: int) -> None:
        """No later broker is told of this version."""
        with self._lock:
            if self._ready is not None:
                models = [m for m in self._ready.models if (m.name, m.version) != (model, version)]
                self._ready = replace(self._ready, models=tuple(models))
        self._send_released()

    def answer(self, answer: Answer, fds: list[int]) -> None:
        """Answers a batch; ``fds``, which go with it, belong to this object from now on."""
        batch_id = answer.batch_id
        with self._lock:
            if answer.kept:
                self._kept[batch_id] = self._given[batch_id].block
            self._replying.discard(batch_id)
            if self._deliver(answer, fds):
                del self._given[batch_id]
            else:
                self._in_vain[batch_id] = answer, fds
        if self._released:
            self._send_released()

    def released(self, batch_id: int) -> None:
        """The model let go of the inputs of a batch that was answered as ``kept``."""
        self._released.append(batch_id)
        self._send_released()

    def resume(self, link: Link) -> None:
        """Goes over to the link to the next broker, and tells it what this worker still has.

        No batch may be ``given`` meanwhile.
        """
        with self._lock:
            self._link = link
            self._forget_released()
            kept = [
                (batch_id, *block)
                for batch_id, block in self._kept.items()
                # Of the others their answer will tell.
                if batch_id not in self._given
            ]
            batches = list(self._given.values())
            for execute in batches:
                if execute.batch_id not in self._replying and execute.batch_id not in self._in_vain:
                    execute.replies = []
            log.info("resumed", batches=len(batches), in_vain=len(self._in_vain), kept=len(kept))
            if self._send(work.Resumed(batches, kept)) and (
                self._ready is None or self._send(self._ready)
            ):
                self._send_in_vain()
        self._send_released()

    def _send_in_vain(self) -> None:
        for batch_id, (answer, fds) in list(self._in_vain.items()):
            answer.kept = batch_id in self._kept
            if not self._deliver(answer, fds):
                return
            del self._in_vain[batch_id], self._given[batch_id]

    def _send_released(self) -> None:
        # Whoever has the lock meanwhile looks here again after that.
        while self._released and self._lock.acquire(blocking=False):
            try:
                while self._released:
                    self._tell_released(self._released[0])
                    self._kept.pop(self._released.popleft(), None)
            except OSError as error:
                # The kernel has no memory: with the next answer it may.
                log.limited("error", "release_not_sent", reason=error)
                return
            finally:
                self._lock.release()

    def _tell_released(self, batch_id: int) -> None:
        # Where the answer was in vain, it will tell that nothing is kept; where this is, the next
        # broker is not told of the block at all.
        if batch_id in self._kept and batch_id not in self._in_vain:
            self._send(work.Released(batch_id))

    def _forget_released(self) -> None:
        while self._released:
            self._kept.pop(self._released.popleft(), None)

    def _deliver(self, answer: Answer, fds: list[int]) -> bool:
        """Whether the batch is answered; then the descriptors are closed."""
        try:
            self._link.send(answer.to_wire(), fds)
        except LinkClosed:
            return False
        except OSError as error:
            # No descriptor or no memory is left for a long packet, or for those that go with it.
            message = f"the worker could not send the outputs: {error}"
            number = ResourceExhausted.number
            if not self._send(work.Failed(answer.batch_id, number, message, answer.kept)):
                return False
        if fds:
            _close(fds)
        return True

    def _send(self, message: work.Failed | work.Released | work.Ready | work.Resumed) -> bool:
        try:
            self._link.send(message.to_wire())
        except LinkClosed:
            return False
        return True


def _close(fds: list[int]) -> None:
    while fds:
        os.close(fds.pop())
