"""The broker's side towards workers: batches out, answers in, and what becomes of links."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from batchyard.broker import events
from batchyard.broker.delivery import Delivery, as_typed
from batchyard.broker.gather import gather
from batchyard.broker.local_front import LocalFront
from batchyard.broker.poller import Poller
from batchyard.broker.queue import Part
from batchyard.broker.replies import Output, objection, reply_places
from batchyard.broker.state import BrokerState
from batchyard.broker.times import BatchTimes
from batchyard.broker.worker_link import WorkerLink
from batchyard.wire import control, work
from batchyard.wire.arena import Mapping
from batchyard.wire.errors import BatchyardError, Internal, ResourceExhausted, from_wire
from batchyard.wire.link import Link, LinkClosed
from batchyard.wire.tags import tags_of


class WorkerService:
    """Used by one thread. ``apply`` takes what happened; ``tell_supervisor`` sends it a packet.

    ``links`` has the worker that each slot has, and had last.
    """

    def __init__(
        self,
        state: BrokerState,
        arena: Mapping,
        local_front: LocalFront,
        delivery: Delivery,
        poller: Poller,
        apply: Callable[[events.Event], None],
        tell_supervisor: Callable[[list[Any]], None],
    ) -> None:
        self.links: dict[int, WorkerLink] = {}
        # Whether it is noted when each batch was where, also when nobody traces its requests.
        self.notes_times = False
        self._state = state
        self._arena = arena
        self._local_front = local_front
        self._delivery = delivery
        self._poller = poller
        self._apply = apply
        self._tell_supervisor = tell_supervisor

    def reaped(self, worker_id: int, why: str, comes_back: bool) -> None:
        """A worker's process is gone."""
        worker = self.links.get(worker_id)
        slot = None
        if worker is not None:
            slot = worker.slot
            self._hear_out(worker)
            worker.state = "STARTING" if comes_back else "FAILED"
            for other in [w for w in self.links.values() if w.slot == slot and w is not worker]:
                if other.is_closed:
                    del self.links[other.id]
        self._apply(events.WorkerReaped(worker_id, why, comes_back, slot))

    def retire(self, worker_id: int) -> None:
        """A worker is to get no more batches."""
        if worker_id in self.links and self.links[worker_id].state == "READY":
            self.links[worker_id].state = "STOPPING"
        self._apply(events.WorkerRetiring(worker_id))

    def attach(self, packet: list[Any], fd: int) -> None:
        """A worker was started, or linked anew; owns ``fd``, our end of the link."""
        _, worker_id, slot, pid, device, concurrent_batches, restarts = packet
        link = Link.from_fd(fd)
        link.set_blocking(False)
        worker = WorkerLink(
            worker_id, slot, pid, device, concurrent_batches, link, self._poller.epoll, restarts
        )
        self.links[worker_id] = worker
        self._poller.handle(link.fileno(), partial(self._serve_worker, worker))
        self._apply(events.WorkerAttached(slot))

    def retired(self, worker_id: int) -> None:
        """A worker has nothing left to do."""
        if worker_id in self.links:
            self._close_link(self.links[worker_id], "STOPPING")
        self._tell_supervisor([control.Kind.RETIRED, worker_id])

    def unload(self, name: str, version: int) -> None:
        """Has all workers forget a version."""
        for worker in self.links.values():
            worker.send(work.Unload(name, version).to_wire(), [])
        self._tell_supervisor([control.Kind.UNLOADED, name, version])

    def region_gone(self, region: int) -> None:
        """Has workers unmap a region."""
        for worker in self.links.values():
            worker.detach(region)

    def close(self) -> None:
        """Closes all links."""
        for worker in self.links.values():
            worker.close()

    def _serve_worker(self, worker: WorkerLink, mask: int) -> None:
        try:
            if mask & select.EPOLLOUT:
                worker.flush()
            if mask & ~select.EPOLLOUT:
                self._serve_packet(worker, *worker.link.receive())
        except BlockingIOError:
            return
        except LinkClosed:
            self._lose(worker)

    def _serve_packet(self, worker: WorkerLink, packet: list[Any], fds: list[int]) -> None:
        kind = packet[0]
        if kind == work.Kind.DONE:
            self._batch_done(work.Done.from_wire(packet), fds)
        elif kind == work.Kind.FAILED:
            failed = work.Failed.from_wire(packet)
            error = from_wire(failed.number, failed.message)
            self._apply(events.BatchFailed(failed.batch_id, error, failed.kept))
        elif kind == work.Kind.RELEASED:
            self._apply(events.InputsReleased(packet[1]))
        elif kind == work.Kind.RESUMED:
            self._apply(events.BatchesResumed(worker.id, work.Resumed.from_wire(packet)))
        elif kind == work.Kind.READY:
            ready = work.Ready.from_wire(packet)
            worker.state = "READY"
            self._apply(
                events.WorkerReady(worker.id, worker.concurrent_batches, ready, worker.slot)
            )
            self._tell_supervisor([control.Kind.READY, worker.id, packet[2]])

    def _batch_done(self, done: work.Done, fds: list[int]) -> None:
        memory = self._arena.memory
        overflow: Mapping | None = None
        if done.overflow:
            if not fds:
                # The kernel drops descriptors when this process may have no more.
                error = Internal("the outputs did not arrive: the broker has no descriptor left")
                self._apply(events.BatchFailed(done.batch_id, error, done.kept))
                return
            try:
                overflow = Mapping(fds[0])
            except OSError as error:
                reason = Internal(f"the outputs did not arrive: {error}")
                self._apply(events.BatchFailed(done.batch_id, reason, done.kept))
                return
            finally:
                os.close(fds[0])
            memory = overflow.memory
        outputs = [
            Output(name, dtype, tuple(shape), memory[offset or 0 : (offset or 0) + nbytes])
            for name, dtype, shape, offset, nbytes in done.outputs
        ]
        batch = self._state.batches.get(done.batch_id)
        if batch is not None and batch.times is not None:
            batch.times.finished(time.monotonic(), done.gather_s, done.execution_s)
        wrong = None if batch is None else objection(batch, outputs)
        if wrong is not None:
            self._apply(events.BatchFailed(done.batch_id, wrong, done.kept))
        else:
            self._finished(done, outputs)
        if overflow is not None:
            # Unmapped when the last reply that reads it has gone out.
            del outputs, memory
            overflow.close()

    def _finished(self, done: work.Done, outputs: list[Output]) -> None:
        output_nbytes = sum(output[4] for output in done.outputs)
        if self._state.is_resumed(done.batch_id):
            # They wait for their clients, and the block must not.
            outputs = [replace(output, data=memoryview(bytes(output.data))) for output in outputs]
        self._delivery.outputs[done.batch_id] = outputs
        finished = events.BatchFinished(
            done.batch_id, output_nbytes, done.kept, done.replied, done.execution_s
        )
        self._apply(finished)
        if not self._state.is_resumed(done.batch_id):
            self._delivery.outputs.pop(done.batch_id, None)

    def _lose(self, worker: WorkerLink) -> None:
        if self._close_link(worker):
            self._apply(events.WorkerLost(worker.id))

    def _close_link(self, worker: WorkerLink, state: str = "FAILED") -> bool:
        fd = worker.link.fileno()
        if fd < 0:
            return False
        self._poller.forget(fd)
        worker.close()
        worker.state = state
        return True

    def _hear_out(self, worker: WorkerLink) -> None:
        """A worker has ended: what it said last is taken in, then its link is closed."""
        while worker.link.fileno() >= 0:
            try:
                self._serve_packet(worker, *worker.link.receive())
            except (BlockingIOError, LinkClosed):
                self._lose(worker)

    def kill(self, worker_id: int, why: str) -> None:
        """Has the supervisor end a worker."""
        self._close_link(self.links[worker_id])
        self._tell_supervisor([control.Kind.HUNG, worker_id, why])

    def dispatch(self, batch: events.Batch) -> None:
        """Copies a batch's rows into its block and hands it to its worker."""
        worker = self.links[batch.worker_id]
        layout = batch.layout
        try:
            gathered = gather(self._arena.memory, batch)
        except (BatchyardError, MemoryError) as error:
            self._apply(events.BatchFailed(batch.id, as_typed(error), kept=False))
            return
        execute = work.Execute(
            batch_id=batch.id,
            model=batch.lane.model.name,
            version=batch.lane.model.version,
            signature=batch.lane.signature.name,
            rows=batch.rows,
            padded_rows=layout.padded_rows,
            alone=batch.alone,
            inputs=gathered.inputs,
            copies=gathered.copies,
            output_offset=batch.block.offset + layout.output_offset,
            output_nbytes=layout.output_nbytes,
            replies=reply_places(batch),
            block=batch.block,
            origins=[
                (part.group.message_id, part.first, part.count, part.row_start, part.rows)
                for part in batch.parts
            ],
        )
        tagged = [part for part in batch.parts if part.group.tags]
        is_traced = tagged and _look_at_tags(tagged, execute)
        if self.notes_times or is_traced:
            batch.times = BatchTimes(batch.dispatched_at, time.monotonic())
        try:
            for part in batch.parts:
                if part.group.region is not None:
                    self._local_front.attach(worker, part.group.client)
            if not worker.serves:
                # Before: it may die of it.
                worker.serves = True
                self._tell_supervisor([control.Kind.SERVED, worker.id])
            worker.send(execute.to_wire(), [])
        except OSError as error:
            full = ResourceExhausted(f"the broker has no descriptor left for this: {error}")
            self._apply(events.BatchFailed(batch.id, full, kept=False))


def _look_at_tags(parts: list[Part], execute: work.Execute) -> bool:
    """Tells the worker what callers named their requests; whether any of them is traced."""
    tags = [tag for part in parts for tag in tags_of(part.group.tags, part.first, part.count)]
    execute.request_ids = [tag.request_id for tag in tags if tag.request_id is not None]
    return any(tag.is_traced for tag in tags)
