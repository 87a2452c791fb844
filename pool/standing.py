"""How a server stands, and what of it a service manager is told when. Pure.

The names are those of sd_notify(3). WATCHDOG=1 follows the signs of life of the broker, and nothing
else: a server whose broker hangs and is not replaced is of no use, whoever else is alive.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from batchyard.pool.events import (
    BrokerAnswered,
    BrokerEnded,
    BrokerListening,
    Cause,
    ConfigurationRead,
    ConfigurationRefused,
    Event,
    ReloadRequested,
)
from batchyard.pool.model_set import Key
from batchyard.pool.offer import Offer
from batchyard.pool.workers import Workers

# What takes long (loading, draining) has limits of its own, so a service manager's are put off as
# long as the broker answers: by more than it takes to replace one that hangs.
_EXTENSION_S = 60
# Of the models that are loading, or that do not load.
_NAMES_MAX = 4


class Phase(Enum):
    """What the server does."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    STOPPED = "stopped"


class Standing:
    """What a service manager has been told."""

    def __init__(self, *, is_watched: bool) -> None:
        """``is_watched``: it wants WATCHDOG=1."""
        self._is_watched = is_watched
        self._phase = Phase.STARTING
        self._status = ""
        # Asked for, and not read yet.
        self._unread = 0
        self._is_reloading = False
        self._refusal = ""
        self._queued_rows = 0
        self._is_broker_up = False
        # Since the one before it ended.
        self._has_answered = False

    def news(
        self, event: Event, now: float, phase: Phase, offer: Offer, workers: Workers
    ) -> dict[str, object]:
        """What is to be told after ``event``."""
        self._note(event)
        told: dict[str, object] = {}
        if phase is not self._phase:
            if phase is Phase.SERVING:
                told["READY"] = 1
            elif self._phase is not Phase.DRAINING:
                told["STOPPING"] = 1
            self._phase = phase
        told |= self._of_reload(event, now, offer)
        if self._is_sign_of_life(event):
            if self._is_watched:
                told["WATCHDOG"] = 1
            if phase is not Phase.SERVING or self._is_reloading:
                told["EXTEND_TIMEOUT_USEC"] = _EXTENSION_S * 1_000_000
        status = self._say(phase, offer, workers)
        if status != self._status:
            told["STATUS"] = self._status = status
        return told

    def _is_sign_of_life(self, event: Event) -> bool:
        """Whether the broker is alive, or what was left of it was cleared away.

        The next one has as long to answer as any. One after the other that never answers is none,
        though each may get as far as to listen.
        """
        if isinstance(event, BrokerEnded):
            had_answered, self._has_answered = self._has_answered, False
            return had_answered
        if isinstance(event, BrokerAnswered):
            self._has_answered = True
        return isinstance(event, BrokerAnswered)

    def _note(self, event: Event) -> None:
        match event:
            case BrokerListening():
                self._is_broker_up = True
            case BrokerAnswered(queued_rows):
                self._queued_rows = queued_rows
            case BrokerEnded():
                self._is_broker_up = False
                self._queued_rows = 0
            case ConfigurationRead():
                self._refusal = ""
            case ConfigurationRefused(message, Cause.SIGNAL | Cause.POLL):
                self._refusal = message
            case _:
                pass

    def _of_reload(self, event: Event, now: float, offer: Offer) -> dict[str, object]:
        """A reload lasts until what was asked for is served everywhere, or is given up."""
        if self._phase is not Phase.SERVING:
            return {}
        if isinstance(event, ReloadRequested):
            self._unread += 1
            self._is_reloading = True
            return {"RELOADING": 1, "MONOTONIC_USEC": int(now * 1e6)}
        if (
            isinstance(event, ConfigurationRead | ConfigurationRefused)
            and event.cause is Cause.SIGNAL
        ):
            # One that was asked for while the server started was not counted.
            self._unread = max(self._unread - 1, 0)
        if self._is_reloading and not self._unread and offer.is_settled:
            self._is_reloading = False
            return {"READY": 1}
        return {}

    def _say(self, phase: Phase, offer: Offer, workers: Workers) -> str:
        if phase is Phase.STOPPED:
            return "Stopped"
        count = f"{workers.serving_count} of {len(workers.slots)} workers"
        if phase is Phase.STARTING:
            return f"Starting: {count} ready, loading {_names(offer.target.served)}"
        if phase is Phase.DRAINING:
            return f"Draining: rows waiting: {self._queued_rows}, {count} at work"
        models = len(offer.served.served)
        said = [
            f"Serving {models} {'model' if models == 1 else 'models'} on {count}, "
            f"rows waiting: {self._queued_rows}"
        ]
        if not self._is_broker_up:
            said.append("the broker is being replaced")
        if not offer.is_settled:
            new = offer.target.served.keys() - offer.served.served.keys()
            said.append(f"loading {_names(new)}" if new else "changing what is served")
        if offer.target.refused:
            said.append(f"not loadable: {_names(offer.target.refused)}")
        if self._refusal:
            said.append(f"the last reload was refused: {self._refusal}")
        return "; ".join(said)


def _names(keys: Iterable[Key]) -> str:
    names = [f"{name}:{version}" for name, version in sorted(keys)]
    more = len(names) - _NAMES_MAX
    return ", ".join(names[:_NAMES_MAX]) + (f" and {more} more" if more > 0 else "")
