"""The supervisor: starts the broker and the workers, watches them, and ends them.

It touches no tensor and imports no TensorFlow. ``pool/state.py`` decides; here processes, signals
and packets become events, and actions are carried out. Nothing here waits but ``select``: a
process's death is noticed at once, whatever else is going on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import selectors
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from batchyard.pool import events
from batchyard.pool.children import Child, describe_exit
from batchyard.pool.gateway_processes import Gateways
from batchyard.pool.ipc_paths import claimed, private_endpoint
from batchyard.pool.plan import ServerPlan
from batchyard.pool.service_manager import ServiceManager
from batchyard.pool.signals import Signals
from batchyard.pool.standing import Phase
from batchyard.pool.startup import Startup
from batchyard.pool.state import ServerState
from batchyard.pool.watch import Reload, Watch
from batchyard.wire import control, log
from batchyard.wire.access import Access
from batchyard.wire.arena import create_memfd
from batchyard.wire.control import Kind
from batchyard.wire.errors import ConfigurationError
from batchyard.wire.link import Link, LinkClosed
from batchyard.wire.log import LogSettings

# How long the broker may take to send its last answers before it is killed.
_GOODBYE_S = 5.0


class ServerFailed(Exception):
    """The server cannot go on; ``exit_code`` is one of ``wire.control``."""

    def __init__(self, exit_code: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Supervisor:
    """Runs one server in this process's main thread."""

    def __init__(
        self,
        plan: ServerPlan,
        on_ready: Callable[[Sequence[str], Mapping[str, str]], None],
        reload: Reload,
        service_manager: ServiceManager | None = None,
        on_startup: Callable[[Startup], None] = lambda startup: None,
        notes: Sequence[str] = (),
    ) -> None:
        """``on_ready`` is called with the endpoints, and the addresses of gateways by their names,
        once every worker and every gateway can take requests.

        ``reload`` is called on another thread. ``service_manager`` hears how the server fares,
        ``on_startup`` how far its start has come. ``notes`` on the plan are logged once nothing
        refuses it any more.
        """
        self._plan = plan
        self._notes = notes
        self._on_ready = on_ready
        self._startup = Startup(len(plan.workers), on_startup)
        beside = [worker.replaced_beside for worker in plan.workers]
        self._service_manager = service_manager or ServiceManager()
        watchdog_s = self._service_manager.watchdog_s
        self._state = ServerState(
            plan.config, plan.found, beside, watchdog_s, has_gateways=bool(plan.gateways)
        )
        self._watch = Watch(plan.config, plan.found, reload)
        self._selector = selectors.DefaultSelector()
        # Where the broker listens: what the configuration says, and for gateways.
        self._bind = list(plan.broker.bind)
        self._arena = -1
        self._broker: Child | None = None
        self._workers: dict[int, Child] = {}
        # What workers said of the versions that they loaded: a broker that is started anew has to
        # know before they are back.
        self._reports: dict[tuple[str, int], dict[str, Any]] = {}
        # What a child said of why it ends, before it ended.
        self._told: dict[Child, events.Death] = {}
        self._events: deque[events.Event] = deque()
        # They are handled at the end of the turn, or of what is being handled.
        self._gateways = Gateways(plan.gateways, self._selector, self._events.append)
        self._signals = Signals(
            self._selector,
            on_stop=lambda: self._happened(events.StopRequested()),
            on_reload=self._reload_asked,
        )

    def run(self) -> None:
        """Serves until a signal says stop. Raises ServerFailed; leaves nothing behind."""
        with self._signals, contextlib.ExitStack() as cleanup:
            cleanup.callback(self._selector.close)
            cleanup.enter_context(self._claim())
            self._arena = create_memfd(self._plan.arena_nbytes, "batchyard-arena")
            cleanup.callback(os.close, self._arena)
            cleanup.callback(self._end_children)
            cleanup.callback(self._watch.close)
            self._selector.register(self._watch, selectors.EVENT_READ, self._seen)
            self._watch.start()
            self._happened(events.Started())
            while self._state.phase is not Phase.STOPPED:
                self._turn()

    @contextlib.contextmanager
    def _claim(self) -> Iterator[None]:
        """Has for itself where the server listens, by whatever it does."""
        try:
            with contextlib.ExitStack() as claims:
                for_gateways = next((e for e in self._bind if e.startswith("ipc://")), "")
                if self._plan.gateways and not for_gateways:
                    # TCP may need keys.
                    for_gateways = claims.enter_context(private_endpoint())
                    self._bind.append(for_gateways)
                access = Access(self._plan.broker.ipc_mode, self._plan.broker.ipc_gid)
                claims.enter_context(claimed(self._bind, access))
                claims.enter_context(self._gateways.bound(for_gateways))
                yield
        except ConfigurationError as error:
            raise ServerFailed(control.EXIT_CONFIGURATION, str(error)) from error

    def _turn(self) -> None:
        due = min(self._state.next_deadline(), self._gateways.next_deadline())
        timeout = due - time.monotonic()
        # A day is within what select takes.
        for key, _ in self._selector.select(min(max(timeout, 0), 86_400)):
            # An earlier event of this turn may have ended this child, and started another that has
            # its descriptors now.
            if self._selector.get_map().get(key.fd) is key:
                key.data()
        self._gateways.advance()
        self._happened(events.TimePassed())

    # Events

    def _happened(self, event: events.Event) -> None:
        self._events.append(event)
        while self._events and self._state.phase is not Phase.STOPPED:
            for action in self._state.handle(self._events.popleft(), time.monotonic()):
                self._act(action)

    def _reload_asked(self) -> None:
        self._happened(events.ReloadRequested())
        self._watch.ask_for_reload()

    def _seen(self) -> None:
        for event in self._watch.events():
            self._happened(event)

    def _observe(self, child: Child, id: int | None) -> None:
        """Has a child's packets and its end become events; ``id`` is a worker's."""
        for fd, handler in ((child.link.fileno(), self._heard), (child.sentinel, self._ended)):
            self._selector.register(
                fd, selectors.EVENT_READ, lambda handler=handler: handler(child, id)
            )

    def _heard(self, child: Child, id: int | None) -> None:
        try:
            packet, _ = child.link.receive()
        except LinkClosed:
            # It is ending; the sentinel tells when it has.
            self._selector.unregister(child.link.fileno())
            return
        kind = packet[0]
        if kind == Kind.FAILED:
            model = packet[3] if len(packet) > 3 else None
            self._told[child] = events.Death(
                packet[2], packet[1], None if model is None else (model[0], model[1]), True
            )
        elif kind == Kind.LISTENING:
            for note in self._notes:
                log.info("device_chosen", note=note)
            self._notes = ()
            self._happened(events.BrokerListening(packet[1]))
            self._gateways.broker_listens()
        elif kind == Kind.READY:
            for report in packet[2]:
                self._reports[report["name"], report["version"]] = report
            self._startup.ready(packet[1])
            self._happened(events.WorkerReady(packet[1]))
        elif kind == Kind.LOADING and id is not None:
            self._startup.loading(id, packet[1], packet[2])
        elif kind == Kind.PONG:
            self._happened(events.BrokerAnswered(packet[1]))
        elif kind == Kind.SERVED:
            self._happened(events.WorkerServed(packet[1]))
        elif kind == Kind.RETIRED:
            self._happened(events.WorkerRetired(packet[1]))
        elif kind == Kind.HUNG:
            self._happened(events.WorkerHung(packet[1], packet[2]))
        elif kind == Kind.UNLOADED:
            self._reports.pop((packet[1], packet[2]), None)
            self._happened(events.VersionUnloaded((packet[1], packet[2])))
        elif kind == Kind.DRAINED:
            self._happened(events.BrokerDrained())

    def _ended(self, child: Child, id: int | None) -> None:
        # What it said last may still wait to be read, unless it was told to end. No end of file
        # follows when what a model forked holds the link's other end, too.
        if child.link.fileno() in self._selector.get_map():
            child.link.set_blocking(False)
        try:
            while child.link.fileno() in self._selector.get_map():
                self._heard(child, id)
        except BlockingIOError:
            self._selector.unregister(child.link.fileno())
        self._selector.unregister(child.sentinel)
        code = child.reap()
        if id is not None:
            self._hear_broker_out()
        death = self._told.pop(child, events.Death(describe_exit(code)))
        if id is None:
            self._broker = None
            self._happened(events.BrokerEnded(death))
        else:
            del self._workers[id]
            self._happened(events.WorkerEnded(id, death))

    def _hear_broker_out(self) -> None:
        """What the broker said of a worker counts before its end."""
        broker = self._broker
        while (
            broker is not None
            and broker.link.fileno() in self._selector.get_map()
            and select.select([broker.link], [], [], 0)[0]
        ):
            self._heard(broker, None)

    # Actions

    def _act(self, action: events.Action) -> None:
        match action:
            case events.TellBroker(packet):
                self._tell_broker(packet)
            case events.StartBroker():
                self._start_broker(action)
            case events.StartWorker():
                self._start_worker(action)
            case events.LinkWorker(id, slot, restarts):
                self._link_worker(id, slot, restarts)
            case events.KillWorker(id):
                self._workers[id].kill()
            case events.KillBroker():
                if self._broker is not None:
                    self._broker.kill()
            case events.EndWorker(id):
                self._workers[id].link.shut_down()
            case events.DrainGateways():
                self._gateways.drain()
            case events.ReadModels(models):
                self._watch.ask_for_models(models)
            case events.AnswerReload(ticket, error):
                self._gateways.answer_reload(ticket, error)
            case events.ResumePolls():
                self._watch.resume_polls()
            case events.ReportReady(endpoints):
                shown = endpoints[: len(self._plan.broker.bind)]
                self._on_ready(shown, self._gateways.addresses)
            case events.TellServiceManager(variables):
                self._service_manager.tell(variables)
            case events.Log(level, event, fields):
                getattr(log, level)(event, **fields)
            case events.ConfigureLogs(settings):
                self._configure_logs(settings)
            case events.Fail(exit_code, message):
                raise ServerFailed(exit_code, message)
            case events.Stop():
                pass

    def _start_broker(self, action: events.StartBroker) -> None:
        settings = dataclasses.replace(
            self._plan.broker,
            # As they really are: a port that was free stays the same.
            bind=list(action.endpoints) or self._bind,
            models=action.models,
            awaited=action.awaited,
            is_restarted=bool(action.endpoints),
            reports=list(self._reports.values()),
        )
        try:
            broker = Child("broker", "batchyard.broker", settings.to_wire(), [self._arena])
        except OSError as error:
            death = events.Death(f"it cannot be started: {error}")
            self._events.append(events.BrokerEnded(death))
            return
        self._broker = broker
        self._observe(broker, None)

    def _start_worker(self, action: events.StartWorker) -> None:
        plan = self._plan.workers[action.slot]
        settings = dataclasses.replace(
            plan.settings,
            worker_id=action.id,
            models=list(action.sources.values()),
            loads_quietly=action.loads_quietly,
        )
        ours, theirs = Link.pair()
        try:
            child = Child(
                f"worker-{action.id}",
                "batchyard.pool.worker",
                settings.to_wire(),
                [theirs.fileno(), self._arena],
                plan.environment,
            )
        except OSError as error:
            ours.close()
            death = events.Death(f"it cannot be started: {error}")
            self._events.append(events.WorkerEnded(action.id, death))
            return
        finally:
            theirs.close()
        self._workers[action.id] = child
        self._observe(child, action.id)
        self._attach(child, action.id, action.slot, action.restarts, ours)

    def _link_worker(self, id: int, slot: int, restarts: int) -> None:
        child = self._workers[id]
        try:
            ours, theirs = Link.pair()
        except OSError:
            # Without a link it is of no use; another may get one.
            child.kill()
            return
        # When it is gone already, its sentinel tells.
        with contextlib.suppress(LinkClosed):
            child.link.send([Kind.LINK], [theirs.fileno()])
        theirs.close()
        self._attach(child, id, slot, restarts, ours)

    def _attach(self, child: Child, id: int, slot: int, restarts: int, link: Link) -> None:
        settings = self._plan.workers[slot].settings
        attach = [
            Kind.ATTACH,
            id,
            slot,
            child.pid,
            settings.device,
            settings.concurrent_batches,
            restarts,
        ]
        self._tell_broker(attach, [link.fileno()])
        link.close()

    def _tell_broker(self, packet: list[Any], fds: Sequence[int] = ()) -> None:
        # When it is gone already, its sentinel tells.
        if self._broker is not None:
            with contextlib.suppress(LinkClosed):
                self._broker.link.send(packet, fds)

    def _configure_logs(self, settings: LogSettings) -> None:
        log.configure("supervisor", settings)
        # For those who are started from now on.
        os.environ.update(settings.to_environment())
        packet = [Kind.LOG, *dataclasses.astuple(settings)]
        self._tell_broker(packet)
        for worker in self._workers.values():
            with contextlib.suppress(LinkClosed):
                worker.link.send(packet)
        self._gateways.tell(packet)

    def _end_children(self) -> None:
        if self._broker is not None:
            # It ends when its link closes, if it has not by itself, and removes its sockets.
            self._broker.link.close()
            select.select([self._broker.sentinel], [], [], _GOODBYE_S)
            self._broker.kill()
            self._broker.reap()
        for worker in self._workers.values():
            # No batch of theirs has anyone to answer any more.
            worker.kill()
        for worker in self._workers.values():
            worker.reap()
        self._gateways.end()
