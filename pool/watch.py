"""Looks at models' folders, and reads the configuration again, beside the supervisor's loop.

A file system may take seconds to answer, and meanwhile a process may die.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from batchyard.pool.config import Config
from batchyard.pool.config_models import Model
from batchyard.pool.events import (
    Cause,
    ConfigurationRead,
    ConfigurationRefused,
    Event,
    VersionsFound,
)
from batchyard.pool.versions import Found, Version, find_all, find_versions, settled
from batchyard.wire import log
from batchyard.wire.errors import ConfigurationError

_NEVER = float("inf")

# Reads the configuration again; with tables of [[models]] to be served instead of its own, if it is
# given them. Raises ConfigurationError.
Reload = Callable[[list[dict[str, Any]] | None], Config]


@dataclass(frozen=True, slots=True)
class _Wish:
    """The configuration is to be read again."""

    cause: Cause
    models: list[dict[str, Any]] | None = None


class Watch:
    """A thread that looks, and says what it sees.

    ``fileno()`` is readable while ``events()`` has something.
    """

    def __init__(self, config: Config, found: Found, reload: Reload) -> None:
        """``found`` is known already."""
        self._reload = reload
        self._seen: Found = found
        self._told: Found = found
        self._config = config
        # None: end.
        self._asked: queue.SimpleQueue[_Wish | None] = queue.SimpleQueue()
        # A gateway's request is under way, which a poll would replace before it is answered.
        self._holds_polls = False
        self._looked_at = self._read_at = time.monotonic()
        # What a poll was refused for, which is told once.
        self._refusal = ""
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._wakeup = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, daemon=True, name="watch")

    def start(self) -> None:
        """From now on it looks."""
        self._thread.start()

    def close(self) -> None:
        """Ends it; a file system that does not answer is not waited for."""
        self._asked.put(None)
        if self._thread.is_alive():
            self._thread.join(0.2)
        if not self._thread.is_alive():
            os.close(self._wakeup)

    def fileno(self) -> int:
        """Readable while there is something to be told."""
        return self._wakeup

    def ask_for_reload(self) -> None:
        """Has it read the configuration."""
        self._asked.put(_Wish(Cause.SIGNAL))

    def ask_for_models(self, models: list[dict[str, Any]]) -> None:
        """Has it read the configuration, with other models. ``resume_polls`` is to follow."""
        self._holds_polls = True
        self._asked.put(_Wish(Cause.GATEWAY, models))

    def resume_polls(self) -> None:
        """Whoever asked for models knows how it ended, and polls may replace them."""
        self._holds_polls = False

    def events(self) -> list[Event]:
        """What it saw since the last call."""
        os.eventfd_read(self._wakeup)
        result = []
        while not self._events.empty():
            result.append(self._events.get())
        return result

    def _run(self) -> None:
        while True:
            try:
                due = min(self._look_at(), self._poll_at())
                timeout = None if due == _NEVER else max(0.0, due - time.monotonic())
                wish = self._asked.get(timeout=timeout)
                if wish is None:
                    return
                self._read_again(wish)
            except queue.Empty:
                self._poll()

    def _look_at(self) -> float:
        wait_s = self._config.pool.file_system_poll_wait_seconds
        return self._looked_at + wait_s if wait_s else _NEVER

    def _poll_at(self) -> float:
        wait_s = self._config.pool.model_config_poll_wait_seconds
        return self._read_at + wait_s if wait_s else _NEVER

    def _poll(self) -> None:
        now = time.monotonic()
        if now >= self._poll_at():
            if not self._holds_polls:
                self._read_again(_Wish(Cause.POLL))
            self._read_at = time.monotonic()
        if now >= self._look_at():
            try:
                self._look()
            except Exception as error:
                log.limited("error", "folders_not_read", reason=f"{type(error).__name__}: {error}")
            self._looked_at = time.monotonic()

    def _read_again(self, wish: _Wish) -> None:
        is_polled = wish.cause is Cause.POLL
        try:
            config = self._reload(wish.models)
            if is_polled and config == self._config:
                self._refusal = ""
                return
            found = find_all(config.models)
        except Exception as error:
            # Also of what nobody foresaw: the next one may be better.
            name = "" if isinstance(error, ConfigurationError) else f"{type(error).__name__}: "
            refusal = f"{name}{error}"
            if not is_polled or refusal != self._refusal:
                self._tell(ConfigurationRefused(refusal, wish.cause))
            self._refusal = refusal if is_polled else ""
            return
        self._refusal = ""
        self._config = config
        self._seen = self._told = found
        self._tell(ConfigurationRead(config, found, wish.cause))

    def _look(self) -> None:
        seen = look(self._config.models, self._seen)
        told = settled(self._seen, seen, self._told)
        self._seen = seen
        if told != self._told:
            self._told = told
            self._tell(VersionsFound(told))

    def _tell(self, event: Event) -> None:
        self._events.put(event)
        os.eventfd_write(self._wakeup, 1)


def look(models: Sequence[Model], before: Found) -> dict[str, dict[int, Version]]:
    """The versions that are there; those that were there where nobody can tell."""
    found = {}
    for model in models:
        try:
            found[model.name] = find_versions(model)
        except (ConfigurationError, OSError):
            found[model.name] = dict(before.get(model.name, {}))
    return found
