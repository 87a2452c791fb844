"""The broker's loop: moves bytes between sockets and the state machine. One thread.

A turn: packets from workers and the supervisor; messages from clients, up to a cap; then the
state machine looks at the clock and forms batches of what is there.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from batchyard.broker import events
from batchyard.broker.admission import admit
from batchyard.broker.delivery import Delivery, as_typed
from batchyard.broker.front import Front
from batchyard.broker.gather import gather
from batchyard.broker.local_front import LocalClient, LocalFront
from batchyard.broker.queries import answer
from batchyard.broker.queue import Region
from batchyard.broker.replies import Output, reply_places
from batchyard.broker.settings import served_models
from batchyard.broker.state import BrokerState
from batchyard.broker.worker_link import WorkerLink
from batchyard.wire import control, log, protocol, work
from batchyard.wire.arena import Mapping
from batchyard.wire.errors import (
    BatchyardError,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    from_wire,
)
from batchyard.wire.link import Link, LinkClosed
from batchyard.wire.local import LocalClosed
from batchyard.wire.protocol import MessageType
from batchyard.wire.tensors import Buffer

# Messages read from clients before workers get a turn.
_DRAIN_MAX = 256
# Looks at all descriptors before batches are formed of what they brought.
_ROUNDS_MAX = 8
# Turns that a draining broker still refuses what arrives, when it has answered all it accepted.
_DRAIN_TURNS = 4
_TIME_PASSED = events.TimePassed()
_DRAINING = protocol.encode(MessageType.DRAINING, [])
# How long workers of a broker that died may take to answer the next, and how often to look.
_SILENCE_MAX_S = 5.0
_SILENCE_LOOK_S = 0.1
# Below this, epoll's own resolution of a millisecond would be too coarse.
_FINE_TIMEOUT_S = 0.05


class BrokerLoop:
    """Runs until the supervisor closes its link, or until it is drained."""

    def __init__(
        self,
        state: BrokerState,
        front: Front,
        local_front: LocalFront,
        epoll: select.epoll,
        arena: Mapping,
        supervisor: Link,
        max_message_nbytes: int,
    ) -> None:
        self.state = state
        self.workers: dict[int, WorkerLink] = {}
        # Another number each time that a broker starts: clients see that it is another.
        self.epoch = time.time_ns()
        self.started_at = time.monotonic()
        self.arena = arena
        self.max_message_nbytes = max_message_nbytes
        self.delivery = Delivery(front, local_front, state.allocator)
        self._front = front
        self._local_front = local_front
        self._supervisor = supervisor
        self._epoll = epoll
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._idle_turns = 0
        self._running = True
        # Workers that served a broker before this one, and whether it goes on where that ended.
        self._awaited = frozenset(state.awaited)
        self._resumed = not state.awaited

    def run(self) -> None:
        """Serves. Returns when it is time for the process to exit."""
        self._supervisor.set_blocking(False)
        self._handle(self._front.fileno(), lambda _: self._front.look_again())
        self._handle(self._supervisor.fileno(), lambda _: self._serve_supervisor())
        for fd in self._local_front.listener_filenos():
            self._handle(fd, partial(self._accept_local, fd))
        while self._running:
            self.turn()
            if self._is_drained():
                self._supervisor.send([control.Kind.DRAINED])
                self._running = False

    def _handle(self, fd: int, handler: Callable[[int], None]) -> None:
        """Has ``handler`` called with epoll's mask whenever ``fd`` is ready."""
        self._handlers[fd] = handler
        self._epoll.register(fd, select.EPOLLIN)

    def _forget(self, fd: int) -> None:
        del self._handlers[fd]
        self._epoll.unregister(fd)

    def turn(self) -> None:
        """Waits for something to do, and does all of it."""
        ready = self._wait()
        # Until nothing more is there, or others have waited for their batches long enough: what
        # arrived together can leave together.
        for _ in range(_ROUNDS_MAX):
            for fd, mask in ready:
                # An earlier one of them may have ended a later one.
                if fd in self._handlers:
                    self._handlers[fd](mask)
            if self._front.has_input() and not self._is_resuming:
                self._serve_clients()
            ready = self._epoll.poll(0)
            if not ready:
                break
        for batch_id in self.delivery.settle() if self.delivery.poll_s is not None else ():
            self._apply(events.BatchDelivered(batch_id))
        if not self.state.is_quiet:
            self._apply(_TIME_PASSED)
        if self.delivery.stuck:
            self._drop_stuck()

    def _is_drained(self) -> bool:
        """Whether all is answered, also what had reached the socket.

        Replies that are on their way have the socket's linger time to be read, and clients that
        go on sending are not waited for.
        """
        if not (self.state.draining and self.state.is_idle):
            return False
        self._idle_turns += 1
        return not self._front.has_input() or self._idle_turns > _DRAIN_TURNS

    def close(self) -> None:
        """Closes the links to workers."""
        for worker in self.workers.values():
            worker.close()

    @property
    def _is_resuming(self) -> bool:
        """Whether clients have to wait: it is not known yet what workers still run for them.

        Nor is it what models take, before one that served a broker before has told.
        """
        if self._resumed:
            return False
        if not self.state.awaited and (self.state.workers or not self._awaited):
            self._resumed = True
        elif not self._awaited & set(self.workers):
            # All those that served are gone.
            self._resumed = not self.state.awaited
        return not self._resumed

    def _wait(self) -> list[tuple[int, int]]:
        if self._is_resuming:
            self._stop_silent()
            return self._epoll.poll(_SILENCE_LOOK_S)
        if self._front.has_input():
            timeout = 0.0
        else:
            timeout = self.state.next_wakeup() - time.monotonic()
            if self.delivery.poll_s is not None:
                timeout = min(timeout, self.delivery.poll_s)
        if timeout <= 0:
            return self._epoll.poll(0)
        if timeout < _FINE_TIMEOUT_S:
            # select counts in microseconds, epoll in whole milliseconds.
            select.select([self._epoll], [], [], timeout)
            return self._epoll.poll(0)
        return self._epoll.poll(None if timeout > 3600 else timeout)

    def _stop_silent(self) -> None:
        """Ends workers that do not tell what they have of the broker before."""
        if time.monotonic() < self.started_at + _SILENCE_MAX_S:
            return
        for worker_id in list(self.state.awaited):
            if worker_id in self.workers and self.workers[worker_id].state != "FAILED":
                self._kill(worker_id, "it did not answer the broker that was started anew")

    # Clients

    def _serve_clients(self) -> None:
        receive = self._front.receive
        for _ in range(_DRAIN_MAX):
            message = receive()
            if message is None:
                return
            client, header, frames = message
            self._serve_message(client, None, header, frames)

    def _accept_local(self, fd: int, _: int) -> None:
        client = self._local_front.accept(fd, self._welcome())
        if client is not None:
            self._handle(client.fileno(), partial(self._serve_local, client))

    def _serve_local(self, client: LocalClient, mask: int) -> None:
        try:
            if mask & select.EPOLLOUT:
                self._local_front.flush(client)
            if mask & ~select.EPOLLOUT and not self._is_resuming:
                message = client.socket.receive()
                if message is not None:
                    self._serve_message(client.key, client.region, *message)
        except LocalClosed:
            self._lose_local(client)

    def _drop_stuck(self) -> None:
        """Closes clients that let their answers pile up: better than answers that never come."""
        while self.delivery.stuck:
            client = self._local_front.find(self.delivery.stuck.pop())
            if client is not None:
                log.warning("client_dropped", reason="it could not be given an answer")
                self._lose_local(client)

    def _lose_local(self, client: LocalClient) -> None:
        self._apply(events.ClientLeft(client.key))
        if client.region is not None:
            for worker in self.workers.values():
                worker.detach(client.region.id)
        self._forget(client.fileno())
        self._local_front.drop(client)

    def _serve_message(
        self, client: bytes, region: Region | None, header: Buffer, frames: list[Buffer]
    ) -> None:
        try:
            type_, body = protocol.decode(header)
        except BatchyardError as error:
            self._send_error(client, [], error)
            return
        try:
            self._serve_decoded(client, region, type_, body, frames)
        except BatchyardError as error:
            # Of other messages the first field is no id to blame.
            names_id = type_ in (MessageType.PREDICT, MessageType.QUERY)
            message_id = protocol.message_id_of(body) if names_id else None
            if type_ is MessageType.QUERY and message_id is not None:
                reply = [message_id, error.number, error.message, None]
                self.delivery.send(client, protocol.encode(MessageType.ANSWER, reply), [])
            else:
                segments = [] if message_id is None else [(message_id, 0, 0)]
                self._send_error(client, segments, error)

    def _serve_decoded(
        self,
        client: bytes,
        region: Region | None,
        type_: MessageType,
        body: list[Any],
        frames: list[Buffer],
    ) -> None:
        if type_ is MessageType.PREDICT:
            predict = protocol.decode_predict(body)
            # ZeroMQ bounds each frame only.
            if sum(map(len, frames)) > self.max_message_nbytes:
                raise ResourceExhausted(
                    f"the message has {sum(map(len, frames))} bytes of tensors, may have at most "
                    f"{self.max_message_nbytes} (max_message_mb under [broker])"
                )
            now = time.monotonic()
            if self.state.draining:
                self.delivery.send(client, _DRAINING, [])
            group = admit(self.state.catalog, client, region, predict, frames, now)
            self._apply(events.RequestsArrived(group, predict.resent))
        elif type_ is MessageType.HELLO:
            self.delivery.send(client, self._welcome(), [])
        elif type_ is MessageType.CANCEL:
            segments = protocol.decode_segments(body)
            self._apply(events.RequestsCancelled(client, segments))
        elif type_ is MessageType.QUERY:
            query_id, result = answer(self, body)
            self.delivery.send(
                client, protocol.encode(MessageType.ANSWER, [query_id, 0, "", result]), []
            )
        elif type_ is MessageType.GOODBYE:
            self._apply(events.ClientLeft(client))
        else:
            raise InvalidArgument(f"{type_.name} is for clients, not for the broker")

    def _welcome(self) -> bytes:
        welcome = [self.epoch, self.max_message_nbytes, self._local_front.name]
        return protocol.encode(MessageType.WELCOME, welcome)

    def _send_error(
        self, client: bytes, segments: list[protocol.Segment], error: BatchyardError
    ) -> None:
        self.delivery.send(client, protocol.encode_error(segments, error), [])

    # Workers

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
            self._tell_supervisor([control.Kind.READY, worker.id])

    def _batch_done(self, done: work.Done, fds: list[int]) -> None:
        memory = self.arena.memory
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
        output_nbytes = sum(output[4] for output in done.outputs)
        if self.state.is_resumed(done.batch_id):
            # They wait for their clients, and the block must not.
            outputs = [replace(output, data=memoryview(bytes(output.data))) for output in outputs]
        self.delivery.outputs[done.batch_id] = outputs
        finished = events.BatchFinished(done.batch_id, output_nbytes, done.kept, done.replied)
        self._apply(finished)
        if not self.state.is_resumed(done.batch_id):
            self.delivery.outputs.pop(done.batch_id, None)
        if overflow is not None:
            # Unmapped when the last reply that reads it has gone out.
            del outputs, memory
            overflow.close()

    def _lose(self, worker: WorkerLink) -> None:
        if self._close_link(worker):
            self._apply(events.WorkerLost(worker.id))

    def _close_link(self, worker: WorkerLink, state: str = "FAILED") -> bool:
        fd = worker.link.fileno()
        if fd < 0:
            return False
        self._forget(fd)
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

    def _kill(self, worker_id: int, why: str) -> None:
        self._close_link(self.workers[worker_id])
        self._tell_supervisor([control.Kind.HUNG, worker_id, why])

    # Supervisor

    def _serve_supervisor(self) -> None:
        try:
            while True:
                packet, fds = self._supervisor.receive()
                kind = packet[0]
                if kind == control.Kind.ATTACH:
                    self._attach(packet, fds[0])
                elif kind == control.Kind.REAPED:
                    self._reaped(*packet[1:])
                elif kind == control.Kind.RETIRE:
                    self._retire(packet[1])
                elif kind == control.Kind.MODELS:
                    models = [control.ModelSettings(**model) for model in packet[1]]
                    self._apply(events.ModelsChanged(served_models(models)))
                elif kind == control.Kind.DRAIN:
                    self._apply(events.DrainStarted())
                    for client in self._local_front.clients():
                        self.delivery.send(client, _DRAINING, [])
        except BlockingIOError:
            return
        except LinkClosed:
            self._running = False

    def _tell_supervisor(self, packet: list[Any]) -> None:
        try:
            self._supervisor.send(packet)
        except LinkClosed:
            self._running = False

    def _reaped(self, worker_id: int, why: str, comes_back: bool) -> None:
        worker = self.workers.get(worker_id)
        slot = -1
        if worker is not None:
            slot = worker.slot
            self._hear_out(worker)
            for other in [w for w in self.workers.values() if w.slot == slot and w is not worker]:
                if other.state in ("FAILED", "STOPPING"):
                    del self.workers[other.id]
        self._apply(events.WorkerReaped(worker_id, why, comes_back, slot))

    def _retire(self, worker_id: int) -> None:
        if worker_id in self.workers and self.workers[worker_id].state == "READY":
            self.workers[worker_id].state = "STOPPING"
        self._apply(events.WorkerRetiring(worker_id))

    def _attach(self, packet: list[Any], fd: int) -> None:
        _, worker_id, slot, pid, device, concurrent_batches, restarts = packet
        link = Link.from_fd(fd)
        link.set_blocking(False)
        worker = WorkerLink(
            worker_id, slot, pid, device, concurrent_batches, link, self._epoll, restarts
        )
        self.workers[worker_id] = worker
        self._handle(link.fileno(), partial(self._serve_worker, worker))

    # Actions

    def _apply(self, event: events.Event) -> None:
        for action in self.state.handle(event, time.monotonic()):
            if isinstance(action, events.Dispatch):
                self._dispatch(action.batch)
            elif isinstance(action, events.Deliver):
                if self.delivery.deliver(action):
                    self._apply(events.BatchDelivered(action.batch.id))
            elif isinstance(action, events.Refuse):
                message_id = action.group.message_id
                segments = [(message_id, first, count) for first, count in action.requests]
                self._send_error(action.group.client, segments, action.error)
            else:
                self._see_to(action)

    def _see_to(self, action: events.Action) -> None:
        if isinstance(action, events.Kill):
            self._kill(action.worker_id, action.why)
        elif isinstance(action, events.Retired):
            if action.worker_id in self.workers:
                self._close_link(self.workers[action.worker_id], "STOPPING")
            self._tell_supervisor([control.Kind.RETIRED, action.worker_id])
        elif isinstance(action, events.Unload):
            for worker in self.workers.values():
                worker.send(work.Unload(action.name, action.version).to_wire(), [])
            self._tell_supervisor([control.Kind.UNLOADED, action.name, action.version])
        elif isinstance(action, events.Forget):
            self.delivery.outputs.pop(action.batch_id, None)

    def _dispatch(self, batch: events.Batch) -> None:
        worker = self.workers[batch.worker_id]
        layout = batch.layout
        try:
            gathered = gather(self.arena.memory, batch)
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
        try:
            for part in batch.parts:
                if part.group.region is not None:
                    self._local_front.attach(worker, part.group.client)
            worker.send(execute.to_wire(), [])
        except OSError as error:
            full = ResourceExhausted(f"the broker has no descriptor left for this: {error}")
            self._apply(events.BatchFailed(batch.id, full, kept=False))
