"""The supervisor's state machine in virtual time, with processes that do what the test says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from batchyard.pool import events
from batchyard.pool.config import Config, validate
from batchyard.pool.events import Death
from batchyard.pool.model_set import Key
from batchyard.pool.standing import Phase
from batchyard.pool.state import ServerState
from batchyard.pool.versions import Version
from batchyard.wire.control import Kind, ModelSettings, ModelSource

KILLED = Death("signal SIGKILL")
PATH = "/models/m"


def config(models: list[dict[str, Any]] | None = None, **pool: Any) -> Config:
    tables = {"models": models or [{"name": "m", "path": PATH}], "pool": pool}
    return validate(tables, "test")


def versions(*numbers: int, files: int = 0) -> dict[str, dict[int, Version]]:
    """Versions of the model ``m``; ``files`` stands for what their files are like."""
    return {"m": {number: Version(f"{PATH}/{number}", files) for number in numbers}}


@dataclass
class VirtualWorker:
    """A process as the world sees it: it exists until it is reaped."""

    id: int
    slot: int
    sources: Mapping[Key, ModelSource]
    loads_quietly: bool
    is_ready: bool = False
    is_retired: bool = False
    is_told_to_end: bool = False
    is_killed: bool = False

    @property
    def serves(self) -> bool:
        return self.is_ready and not self.is_retired


@dataclass
class VirtualServer:
    """A server of ``beside`` slots, started and serving."""

    found: dict[str, dict[int, Version]] = field(default_factory=lambda: versions(1))
    config: Config = field(default_factory=config)
    beside: tuple[bool, ...] = (True, True)
    serving: bool = True
    watchdog_s: float = float("inf")
    has_gateways: bool = False

    def __post_init__(self) -> None:
        self.now = 100.0
        self.state = ServerState(
            self.config,
            self.found,
            self.beside,
            self.watchdog_s,
            has_gateways=self.has_gateways,
        )
        self.workers: dict[int, VirtualWorker] = {}
        self.broker: events.StartBroker | None = None
        self.brokers = 0
        # What the broker was told, and how often it was asked whether it hangs.
        self.packets: list[list[Any]] = []
        self.pings = 0
        self.links: list[int] = []
        self.logs: list[str] = []
        # By event: the fields of the last.
        self.log_fields: dict[str, Mapping[str, object]] = {}
        # What the service manager was told, and what of it says how the server fares.
        self.notices: list[Mapping[str, object]] = []
        self.status = ""
        self.failure: events.Fail | None = None
        self.is_reported_ready = False
        self.gateways_drain = False
        # What the watch is to read, and how gateways' requests ended, by their tickets.
        self.read_models: list[list[dict[str, Any]]] = []
        self.holds_polls = False
        self.reloads: dict[int, str] = {}
        self.models: list[ModelSettings] = []
        # What it was told before: it may not have read the last packet when it speaks.
        self.models_before: list[ModelSettings] = []
        self.happens(events.Started())
        if self.serving:
            self.happens(events.BrokerListening(["tcp://127.0.0.1:1"]))
            for id in list(self.workers):
                self.ready(id)
            if self.has_gateways:
                self.happens(events.GatewaysAnswer())
            assert self.phase is Phase.SERVING
            assert self.is_reported_ready

    @property
    def phase(self) -> Phase:
        return self.state.phase

    def happens(self, event: events.Event) -> None:
        for action in self.state.handle(event, self.now):
            self._act(action)

    def passes(self, seconds: float) -> None:
        """Time passes, and the supervisor looks at the clock when it wanted to."""
        end = self.now + seconds
        while (deadline := self.state.next_deadline()) <= end and self.phase is not Phase.STOPPED:
            assert deadline > self.now - 1e-9 or deadline == float("-inf"), "it would never wait"
            self.now = max(self.now, deadline)
            self.happens(events.TimePassed())
        self.now = end

    def ready(self, id: int) -> None:
        self.workers[id].is_ready = True
        self.happens(events.WorkerReady(id))

    def dies(self, id: int, death: Death = KILLED) -> None:
        worker = self.workers.pop(id)
        self.happens(events.WorkerEnded(worker.id, death))

    def broker_dies(self, death: Death = KILLED) -> None:
        assert self.broker is not None
        self.broker = None
        self.happens(events.BrokerEnded(death))

    def finds(self, *numbers: int, files: int = 0) -> None:
        self.happens(events.VersionsFound(versions(*numbers, files=files)))

    def unloads(self, version: int) -> None:
        """The broker has no requests for a version that it was told to serve no more."""
        key = "m", version
        for worker in self.workers.values():
            worker.sources = {k: s for k, s in worker.sources.items() if k != key}
        self.happens(events.VersionUnloaded(key))

    def rolls_on(self) -> None:
        """Whatever was started loads, whoever is retired finishes, until nothing more happens."""
        for _ in range(100):
            for worker in list(self.workers.values()):
                if worker.is_killed or worker.is_told_to_end:
                    self.dies(worker.id)
                    break
                if worker.is_retired:
                    self.happens(events.WorkerRetired(worker.id))
                    break
                if not worker.is_ready:
                    self.ready(worker.id)
                    break
            else:
                return
        raise AssertionError("it never comes to rest")

    # What there is

    def of_slot(self, slot: int) -> list[VirtualWorker]:
        return [worker for worker in self.workers.values() if worker.slot == slot]

    @property
    def loading(self) -> list[VirtualWorker]:
        return [w for w in self.workers.values() if not w.is_ready and not w.is_killed]

    def loaded(self) -> dict[int, list[int]]:
        """The versions of each process that serves, by its slot."""
        return {
            worker.slot: sorted(version for _, version in worker.sources)
            for worker in self.workers.values()
            if worker.serves
        }

    def told(self) -> dict[int, str]:
        """What the broker knows: ``current``, ``error``, or nothing more of each version."""
        return {
            model.version: "current" if model.is_current else "error" if model.error else ""
            for model in self.models
        }

    def of_kind(self, kind: Kind) -> list[list[Any]]:
        return [packet for packet in self.packets if packet[0] == kind]

    def _act(self, action: events.Action) -> None:
        assert self.failure is None, "nothing comes after the end"
        match action:
            case events.StartBroker():
                assert self.broker is None
                self.broker = action
                self.brokers += 1
                self.models = self.models_before = action.models
                self.links.clear()
            case events.StartWorker():
                assert self.broker is not None
                self.workers[action.id] = VirtualWorker(
                    action.id, action.slot, action.sources, action.loads_quietly
                )
            case events.LinkWorker(id):
                self.links.append(id)
            case events.EndWorker(id):
                self.workers[id].is_told_to_end = True
            case events.KillWorker(id):
                self.workers[id].is_killed = True
            case events.TellBroker(packet):
                self._told(packet)
            case events.ReportReady():
                self.is_reported_ready = True
            case events.DrainGateways():
                self.gateways_drain = True
            case events.ReadModels(models):
                self.read_models.append(models)
                self.holds_polls = True
            case events.ResumePolls():
                self.holds_polls = False
            case events.AnswerReload(ticket, error):
                assert ticket not in self.reloads, "one answer each"
                self.reloads[ticket] = "OK" if error is None else str(error)
            case events.TellServiceManager(variables):
                self.notices.append(variables)
                self.status = str(variables.get("STATUS", self.status))
            case events.Fail():
                self.failure = action
            case events.Log(_, event, fields):
                self.logs.append(event)
                self.log_fields[event] = fields

    def _told(self, packet: list[Any]) -> None:
        assert self.broker is not None
        if packet[0] == Kind.PING:
            self.pings += 1
            return
        self.packets.append(packet)
        if packet[0] == Kind.MODELS:
            self.models_before = self.models
            self.models = [ModelSettings(**model) for model in packet[1]]
        elif packet[0] == Kind.RETIRE:
            self._retires(self.workers[packet[1]])

    def _retires(self, worker: VirtualWorker) -> None:
        if not worker.is_retired:
            # Its place is taken, or cannot be while it is there and others serve.
            others = [w for w in self.workers.values() if w.serves and w is not worker]
            slots = self.state.workers.slots
            if self.beside[worker.slot]:
                assert any(other.slot == worker.slot for other in others)
            else:
                alone = all(slot.has_failed for slot in slots if slot.index != worker.slot)
                assert others or alone
        worker.is_retired = True
