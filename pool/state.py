"""The supervisor's state machine: ``(event, now) -> actions``. No process, socket or clock here."""

from __future__ import annotations

from collections.abc import Sequence

from batchyard.pool.config import Config
from batchyard.pool.events import (
    Action,
    BrokerAnswered,
    BrokerDrained,
    BrokerEnded,
    BrokerListening,
    ConfigurationRead,
    ConfigurationRefused,
    ConfigureLogs,
    Death,
    DrainGateways,
    Event,
    Fail,
    GatewayFailed,
    GatewaysAnswer,
    GatewaysDrained,
    KillBroker,
    Log,
    ModelsRequested,
    ReloadRequested,
    ReportReady,
    StartBroker,
    Started,
    Stop,
    StopRequested,
    TellBroker,
    TellServiceManager,
    VersionsFound,
    VersionUnloaded,
    WorkerEnded,
    WorkerHung,
    WorkerReady,
    WorkerRetired,
    WorkerServed,
)
from batchyard.pool.offer import Offer
from batchyard.pool.pulse import Pulse
from batchyard.pool.reloads import Reloads
from batchyard.pool.restarts import Restarts
from batchyard.pool.standing import Phase, Standing
from batchyard.pool.versions import Found
from batchyard.pool.workers import Workers
from batchyard.wire import control
from batchyard.wire.control import Kind

_NEVER = float("inf")
# Who signals a process and then its whole group (GNU timeout, some service managers) means it once.
_SAME_SIGNAL_S = 0.5
# What gateways have read when the server is to stop gets this long to reach the broker, before that
# refuses what comes.
_GATEWAYS_FIRST_S = 1.0


class ServerState:
    """One server: its broker and its workers, from the start to the end."""

    def __init__(
        self,
        config: Config,
        found: Found,
        replaced_beside: Sequence[bool],
        watchdog_s: float = _NEVER,
        *,
        has_gateways: bool = False,
    ) -> None:
        """``replaced_beside`` says of each slot whether two processes fit its device.

        ``watchdog_s``: a service manager ends this process when it hears nothing for so long.
        ``has_gateways``: GatewaysAnswer comes, and GatewaysDrained after DrainGateways.
        """
        self.phase = Phase.STARTING
        self.endpoints: Sequence[str] = ()
        self._actions: list[Action] = []
        # Of the start: what of it a later one changes, but cannot be changed, is told each time.
        self._first_config = self._config = config
        self.offer = Offer(config, found)
        self.workers = Workers(replaced_beside, self.offer, self._do)
        self._reloads = Reloads(self._do)
        self._complaints = self.offer.target.complaints
        self._refusals: tuple[str, ...] = ()
        self._tell_of_refusals()
        self._is_broker_up = False
        self._broker_start_at = _NEVER
        self._broker_deaths = Restarts()
        self._pulse = Pulse(watchdog_s)
        self._standing = Standing(is_watched=watchdog_s < _NEVER)
        self._gateways_answer = self._gateways_drained = not has_gateways
        self._drain_by = _NEVER
        self._drain_broker_at = _NEVER
        self._broker_drained = False
        self._stop_asked_at = _NEVER
        # What came while the server started.
        self._waiting: list[Event] = []

    def handle(self, event: Event, now: float) -> list[Action]:
        """What is to be done, in this order; nothing comes after Stop or Fail."""
        self._handle(event, now)
        self._advance(now)
        actions, self._actions = self._actions, []
        told = self._standing.news(event, now, self.phase, self.offer, self.workers)
        if told:
            # A process that ends hears of nothing after that.
            is_over = bool(actions) and isinstance(actions[-1], Stop | Fail)
            actions.insert(len(actions) - is_over, TellServiceManager(told))
        return actions

    def next_deadline(self) -> float:
        """When TimePassed is to come at the latest."""
        workers = self.workers.next_deadline() if self._is_broker_up else _NEVER
        broker = min(self._broker_start_at, self._pulse.ask_at, self._drain_broker_at)
        return min(workers, broker, self._drain_by)

    def _do(self, action: Action) -> None:
        if self.phase is Phase.STOPPED:
            return
        if isinstance(action, Stop | Fail):
            self.phase = Phase.STOPPED
        if isinstance(action, TellBroker) and not self._is_broker_up:
            # The next one is told all of it when it starts.
            return
        self._actions.append(action)

    def _handle(self, event: Event, now: float) -> None:
        match event:
            case Started():
                self._broker_start_at = now
                self.workers.start(now)
            case BrokerListening(endpoints):
                if self.endpoints:
                    self._do(Log("info", "broker_restarted", {}))
                self.endpoints = endpoints
                self._pulse.begin(now)
            case BrokerAnswered():
                self._pulse.answered(now)
            case BrokerEnded(death):
                self._broker_ended(death, now)
            case BrokerDrained():
                self._broker_drained = True
            case GatewaysAnswer():
                self._gateways_answer = True
            case GatewayFailed(name, death):
                if self.phase is Phase.STARTING:
                    self._do(Fail(death.exit_code, death.of(name)))
            case GatewaysDrained():
                self._gateways_drained = True
            case WorkerReady(id):
                self.workers.ready(id, now)
            case WorkerServed(id):
                self.workers.served(id)
            case WorkerRetired(id):
                self.workers.retired(id, now)
            case WorkerHung(id, why):
                self.workers.hung(id, why)
            case WorkerEnded(id, death):
                self.workers.ended(id, death, now)
            case VersionUnloaded(key):
                self.offer.unloaded(key)
                self.workers.unloaded(key)
            case VersionsFound() | ConfigurationRead() | ConfigurationRefused():
                self._offered(event, now)
            case ReloadRequested():
                # Who reads it says when it did. A key that was revoked is not to stay until then,
                # nor for what is wrong elsewhere: models' folders may be long in answering.
                if self._first_config.broker.has_keys:
                    self._do(TellBroker([Kind.KEYS]))
            case ModelsRequested(ticket, models):
                is_stopping = self.phase is Phase.DRAINING
                self._reloads.asked(ticket, models, is_stopping=is_stopping)
            case StopRequested():
                self._stop_requested(now)

    def _advance(self, now: float) -> None:
        is_ready = self.workers.are_ready and self._gateways_answer
        if self.phase is Phase.STARTING and self.endpoints and is_ready:
            self._serve(now)
        if self.phase is Phase.DRAINING:
            self._drain(now)
        if self.phase is Phase.STOPPED:
            return
        if now >= self._broker_start_at:
            self._start_broker(now)
        if now >= self._pulse.ask_at:
            self._ask_broker(now)
        if self._is_broker_up:
            self.workers.advance(now)
        if self.phase is Phase.SERVING:
            self._reloads.look(self.offer)
            self._reloads.begin()

    def _serve(self, now: float) -> None:
        self.phase = Phase.SERVING
        self.workers.is_starting = False
        self.workers.replaces = True
        self._do(ReportReady(self.endpoints))
        for event in self._waiting:
            self._handle(event, now)

    # The broker

    def _start_broker(self, now: float) -> None:
        self._broker_start_at = _NEVER
        self._is_broker_up = True
        models = self.offer.to_tell()
        self._do(StartBroker(self.endpoints, models, self.workers.awaited()))
        if self.endpoints:
            # The first one may take its time.
            self._pulse.begin(now)
        self.workers.broker_started(models)
        if self.phase is Phase.DRAINING and self._drain_broker_at == _NEVER:
            self._do(TellBroker([Kind.DRAIN]))

    def _ask_broker(self, now: float) -> None:
        if self._pulse.ask(now):
            self._do(TellBroker([Kind.PING]))
            return
        self._pulse.end()
        reason = f"it did not answer for {self._pulse.patience_s:.3g} s"
        self._do(Log("error", "broker_hung", {"reason": reason}))
        self._do(KillBroker())

    def _broker_ended(self, death: Death, now: float) -> None:
        self._is_broker_up = False
        self._pulse.end()
        if self._broker_drained:
            # It ends by itself then. What gateways still have to give out, they have.
            return
        if self.phase is Phase.STARTING:
            self._do(Fail(death.exit_code, death.of("broker")))
            return
        self._do(Log("error", "broker_died", {"reason": death.reason}))
        # One that listens and hangs is of as little use as one that dies at once.
        lived_s = self._pulse.lived_s(now)
        told_code = death.exit_code if death.was_told else control.EXIT_FAILURE
        pause_s = self._broker_deaths.pause_after(lived_s, told_code)
        if pause_s is None:
            self._do(Fail(control.EXIT_FAILURE, death.of("broker")))
            return
        self.workers.broker_lost()
        self.offer.broker_lost()
        self._broker_start_at = now + pause_s

    # What is to be served, and how long

    def _offered(
        self, event: VersionsFound | ConfigurationRead | ConfigurationRefused, now: float
    ) -> None:
        if self.phase is Phase.STARTING:
            self._waiting.append(event)
        if self.phase is not Phase.SERVING:
            return
        match event:
            case VersionsFound(found):
                self.offer.find(found)
                self.workers.try_failed(now)
            case ConfigurationRead(config, found, cause):
                if config.log != self._config.log:
                    self._do(ConfigureLogs(config.log.settings))
                self._config = config
                fields: dict[str, object] = {"models": len(config.models), "cause": cause.value}
                self._do(Log("info", "reloaded", fields))
                for name in needing_restart(self._first_config, config):
                    refused = {"setting": name, "reason": "needs a restart"}
                    self._do(Log("warning", "reload_incomplete", refused))
                self.offer.find(found, config)
                self.workers.try_failed(now)
                self._reloads.read(cause)
            case ConfigurationRefused(message, cause):
                fields = {"reason": message, "cause": cause.value}
                self._do(Log("error", "reload_refused", fields))
                self._reloads.refused(cause, message)
        complaints = self.offer.target.complaints
        if complaints != self._complaints:
            self._complaints = complaints
            for complaint in complaints:
                self._do(Log("warning", "label_unserved", {"reason": complaint}))
        self._tell_of_refusals()

    def _tell_of_refusals(self) -> None:
        refusals = self.offer.target.refusals
        if refusals != self._refusals:
            self._refusals = refusals
            for refusal in refusals:
                self._do(Log("error", "version_refused", {"reason": refusal}))

    def _stop_requested(self, now: float) -> None:
        if self.phase is Phase.STARTING:
            # Nothing was accepted yet.
            self._do(Stop())
        elif self.phase is Phase.DRAINING and now - self._stop_asked_at >= _SAME_SIGNAL_S:
            message = "stopped at once, as asked; requests may be unanswered"
            self._do(Fail(control.EXIT_FAILURE, message))
        elif self.phase is Phase.SERVING:
            timeout_s = self._config.pool.drain_timeout_s
            self._do(Log("info", "draining", {"timeout_s": timeout_s}))
            self.phase = Phase.DRAINING
            self._stop_asked_at = now
            self._drain_by = now + timeout_s
            self.workers.stop_replacing()
            self._reloads.stop()
            if not self._gateways_drained:
                self._do(DrainGateways())
            self._drain_broker_at = now + _GATEWAYS_FIRST_S

    def _drain(self, now: float) -> None:
        if self._drain_broker_at <= now or (
            self._gateways_drained and self._drain_broker_at < _NEVER
        ):
            self._drain_broker_at = _NEVER
            self._do(TellBroker([Kind.DRAIN]))
        if self._broker_drained and self._gateways_drained:
            self._do(Stop())
        elif now >= self._drain_by:
            what = "gateways were still answering"
            if not self._broker_drained:
                what = "requests were still running"
            message = f"{what} after drain_timeout_s = {self._config.pool.drain_timeout_s}"
            self._do(Fail(control.EXIT_FAILURE, message))


def needing_restart(first: Config, new: Config) -> list[str]:
    """The settings that differ and that a running server cannot change."""
    live = {
        "drain_timeout_s",
        "batch_execution_timeout",
        "load_timeout",
        "file_system_poll_wait_seconds",
        "model_config_poll_wait_seconds",
    }
    return [
        f"{section}.{name}"
        for section, old_section, new_section in (
            ("broker", first.broker, new.broker),
            ("pool", first.pool, new.pool),
            ("rest", first.rest, new.rest),
            ("grpc", first.grpc, new.grpc),
            ("metrics", first.metrics, new.metrics),
        )
        for name in type(new_section).model_fields
        if name not in live and getattr(old_section, name) != getattr(new_section, name)
    ]
