"""The broker's loop: moves bytes between sockets and the state machine. One thread.

A turn: packets from workers and the supervisor; messages from clients, up to a cap; then the
state machine looks at the clock and forms batches of what is there.
"""

from __future__ import annotations

import select
import time
from typing import Any

from batchyard.broker import events
from batchyard.broker.client_service import ClientService
from batchyard.broker.delivery import Delivery
from batchyard.broker.front import Front
from batchyard.broker.local_front import LocalFront
from batchyard.broker.poller import Poller
from batchyard.broker.queries import answer
from batchyard.broker.settings import served_models
from batchyard.broker.slow_requests import SlowRequests
from batchyard.broker.state import BrokerState
from batchyard.broker.worker_link import WorkerLink
from batchyard.broker.worker_service import WorkerService
from batchyard.wire import control, log
from batchyard.wire.arena import Mapping
from batchyard.wire.link import Link, LinkClosed
from batchyard.wire.log import LogSettings

# Looks at all descriptors before batches are formed of what they brought.
_ROUNDS_MAX = 8
# Turns that a draining broker still refuses what arrives, when it has answered all it accepted.
_DRAIN_TURNS = 4
_TIME_PASSED = events.TimePassed()
# How long workers of a broker that died may take to answer the next, and how often to look. Shorter
# than clients look for the server: one worker that stands still must not cost them their requests.
_SILENCE_MAX_S = 2.0
_SILENCE_LOOK_S = 0.1
# How long the clients of a broker that died may take to send again what it had accepted, before
# one that drains has nothing to wait for.
_COME_BACK_S = 1.0
# How long one that drains listens at least.
_LAST_CALLS_S = 0.05


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
        is_restarted: bool = False,
    ) -> None:
        self.state = state
        # Another number each time that a broker starts: clients see that it is another.
        self.epoch = time.time_ns()
        self.started_at = time.monotonic()
        self.delivery = Delivery(front, local_front, state.allocator)
        self.local_front = local_front
        self.front = front
        self._supervisor = supervisor
        self._poller = poller = Poller(epoll)
        self._workers = WorkerService(
            state, arena, local_front, self.delivery, poller, self._apply, self._tell_supervisor
        )
        self._clients = ClientService(
            state,
            front,
            local_front,
            self.delivery,
            poller,
            self._apply,
            lambda body: answer(self, body),
            self._workers.region_gone,
            max_message_nbytes,
            self.epoch,
        )
        self._slow_requests: SlowRequests | None = None
        self._idle_turns = 0
        self._running = True
        # Until it is known what workers of a broker before this one still run for them.
        self._clients.is_open = not state.awaited
        # When their clients have had time to come back.
        self._settled_at = self.started_at + _COME_BACK_S if is_restarted else self.started_at

    def configure_logs(self, settings: LogSettings) -> None:
        """What is looked at for the log from now on."""
        is_on = settings.slow_request_ms > 0
        self._slow_requests = SlowRequests(settings.slow_request_ms / 1e3) if is_on else None
        self._workers.notes_times = is_on

    @property
    def workers(self) -> dict[int, WorkerLink]:
        """The link of the worker that each slot has, and had last."""
        return self._workers.links

    def run(self) -> None:
        """Serves. Returns when it is time for the process to exit."""
        self._supervisor.set_blocking(False)
        self._clients.listen()
        self._poller.handle(self._supervisor.fileno(), lambda _: self._serve_supervisor())
        while self._running:
            self.turn()
            if self._is_drained():
                self._supervisor.send([control.Kind.DRAINED])
                self._running = False

    def turn(self) -> None:
        """Waits for something to do, and does all of it."""
        ready = self._wait()
        # Until nothing more is there, or others have waited for their batches long enough: what
        # arrived together can leave together.
        for _ in range(_ROUNDS_MAX):
            self._poller.serve(ready)
            if self._clients.is_open and self.front.has_input():
                self._clients.serve_far()
            ready = self._poller.wait(0)
            if not ready:
                break
        if self.delivery.poll_s is not None:
            for batch_id in self.delivery.settle():
                self._apply(events.BatchDelivered(batch_id))
        if not self.state.is_quiet:
            self._apply(_TIME_PASSED)
        if self.delivery.stuck:
            self._clients.drop_stuck()

    def _is_drained(self) -> bool:
        """Whether all is answered, also what had reached the socket.

        Replies that are on their way have the socket's linger time to be read, and clients that
        go on sending are not waited for.
        """
        if not (self.state.draining and self.state.is_idle and self._clients.is_open):
            return False
        if time.monotonic() < self._settled_at:
            return False
        self._idle_turns += 1
        return not self.front.has_input() or self._idle_turns > _DRAIN_TURNS

    def close(self) -> None:
        """Closes the links to workers."""
        self._workers.close()

    def _wait(self) -> list[tuple[int, int]]:
        if not self._clients.is_open:
            self._resume()
        if not self._clients.is_open:
            return self._poller.wait(_SILENCE_LOOK_S)
        if self.front.has_input():
            return self._poller.wait(0)
        now = time.monotonic()
        timeout = self.state.next_wakeup() - now
        if self.state.draining and self._settled_at > now:
            timeout = min(timeout, self._settled_at - now)
        if self.delivery.poll_s is not None:
            timeout = min(timeout, self.delivery.poll_s)
        return self._poller.wait(timeout)

    def _resume(self) -> None:
        """Lets clients in once all workers have told."""
        if not self.state.awaited:
            self._clients.is_open = True
            self._settled_at = time.monotonic() + _COME_BACK_S
        elif time.monotonic() > self.started_at + _SILENCE_MAX_S:
            for worker_id in self.state.awaited & set(self.workers):
                if self.workers[worker_id].state != "FAILED":
                    why = "it did not answer the broker that was started anew"
                    self._workers.kill(worker_id, why)

    # Supervisor

    def _serve_supervisor(self) -> None:
        try:
            while True:
                self._obey(*self._supervisor.receive())
        except BlockingIOError:
            return
        except LinkClosed:
            self._running = False

    def _obey(self, packet: list[Any], fds: list[int]) -> None:
        kind = packet[0]
        if kind == control.Kind.ATTACH:
            if fds:
                self._workers.attach(packet, fds[0])
            else:
                # The kernel drops descriptors when this process may have no more.
                why = "its link did not arrive: the broker has no descriptor left"
                self._tell_supervisor([control.Kind.HUNG, packet[1], why])
        elif kind == control.Kind.REAPED:
            self._workers.reaped(*packet[1:])
        elif kind == control.Kind.RETIRE:
            self._workers.retire(packet[1])
        elif kind == control.Kind.MODELS:
            models = [control.ModelSettings(**model) for model in packet[1]]
            self._apply(events.ModelsChanged(served_models(models)))
        elif kind == control.Kind.LOG:
            self.configure_logs(log.configure("broker", LogSettings(*packet[1:])))
        elif kind == control.Kind.KEYS:
            if self.front.gate is not None:
                self.front.gate.reload()
        elif kind == control.Kind.PING:
            queued_rows = sum(m.queued_rows for m in self.state.catalog.models.values())
            self._tell_supervisor([control.Kind.PONG, queued_rows])
        elif kind == control.Kind.DRAIN:
            self._apply(events.DrainStarted())
            self._clients.tell_draining()
            # What is on its way is refused, rather than met by nobody.
            self._settled_at = max(self._settled_at, time.monotonic() + _LAST_CALLS_S)

    def _tell_supervisor(self, packet: list[Any]) -> None:
        try:
            self._supervisor.send(packet)
        except LinkClosed:
            self._running = False

    # Actions

    def _apply(self, event: events.Event) -> None:
        for action in self.state.handle(event, time.monotonic()):
            if isinstance(action, events.Dispatch):
                self._workers.dispatch(action.batch)
            elif isinstance(action, events.Deliver):
                if self.delivery.deliver(action):
                    self._apply(events.BatchDelivered(action.batch.id))
                if self._slow_requests is not None:
                    self._slow_requests.delivered(action, time.monotonic())
            elif isinstance(action, events.Refuse):
                self._clients.refuse(action)
                if self._slow_requests is not None:
                    self._slow_requests.refused(action, time.monotonic())
            elif isinstance(action, events.Kill):
                self._workers.kill(action.worker_id, action.why)
            elif isinstance(action, events.Retired):
                self._workers.retired(action.worker_id)
            elif isinstance(action, events.Unload):
                self._workers.unload(action.name, action.version)
            else:
                self.delivery.outputs.pop(action.batch_id, None)
