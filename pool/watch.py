"""Looks at models' folders, and reads the configuration again, beside the supervisor's loop.

A file system may take seconds to answer, and meanwhile a process may die.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Sequence

from batchyard.pool.config import Config
from batchyard.pool.config_models import Model
from batchyard.pool.events import ConfigurationRead, ConfigurationRefused, Event, VersionsFound
from batchyard.pool.versions import Found, Version, find_all, find_versions, settled
from batchyard.wire import log
from batchyard.wire.errors import ConfigurationError


class Watch:
    """A thread that looks, and says what it sees.

    ``fileno()`` is readable while ``events()`` has something.
    """

    def __init__(self, config: Config, found: Found, reload: Callable[[], Config]) -> None:
        """``found`` is known already; ``reload`` reads the configuration again."""
        self._reload = reload
        self._seen: Found = found
        self._told: Found = found
        self._config = config
        # True: read the configuration again; False: end.
        self._asked: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._wakeup = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, daemon=True, name="watch")

    def start(self) -> None:
        """From now on it looks."""
        self._thread.start()

    def close(self) -> None:
        """Ends it; a file system that does not answer is not waited for."""
        self._asked.put(False)
        if self._thread.is_alive():
            self._thread.join(0.2)
        if not self._thread.is_alive():
            os.close(self._wakeup)

    def fileno(self) -> int:
        """Readable while there is something to be told."""
        return self._wakeup

    def ask_for_reload(self) -> None:
        """Has it read the configuration."""
        self._asked.put(True)

    def events(self) -> list[Event]:
        """What it saw since the last call."""
        os.eventfd_read(self._wakeup)
        result = []
        while not self._events.empty():
            result.append(self._events.get())
        return result

    def _run(self) -> None:
        while True:
            poll_s = self._config.pool.file_system_poll_wait_seconds
            try:
                if not self._asked.get(timeout=poll_s or None):
                    return
                self._read_again()
            except queue.Empty:
                try:
                    self._look()
                except Exception as error:
                    log.limited(
                        "error", "folders_not_read", reason=f"{type(error).__name__}: {error}"
                    )

    def _read_again(self) -> None:
        try:
            config = self._reload()
            found = find_all(config.models)
        except Exception as error:
            # Also of what nobody foresaw: the next one may be better.
            name = "" if isinstance(error, ConfigurationError) else f"{type(error).__name__}: "
            self._tell(ConfigurationRefused(f"{name}{error}"))
            return
        self._config = config
        self._seen = self._told = found
        self._tell(ConfigurationRead(config, found))

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
