"""How many models run at once in a worker, and for how long each ran."""

from __future__ import annotations

import threading
import time
from types import TracebackType


class Turns(threading.Semaphore):
    """Entered by a thread while its model runs: by so many at once."""

    def took(self, began: float) -> float:
        """For how many seconds the model ran that began then, by ``time.perf_counter``.

        Called inside.
        """
        return time.perf_counter() - began


class TurnsOnCard(Turns):
    """One more is admitted than the card runs at once: what it launches waits there.

    So the card has work when the one before is done. While it waits it does not run.
    """

    def __init__(self, at_once: int) -> None:
        super().__init__(at_once + 1)
        self._at_once = at_once
        self._lock = threading.Lock()
        self._inside = 0
        # Threads: the one that waits, if any, and since when others had room who had waited.
        self._waiting: int | None = None
        self._room_since: dict[int, float] = {}

    def __enter__(self, blocking: bool = True, timeout: float | None = None) -> bool:
        super().acquire(blocking, timeout)
        with self._lock:
            self._inside += 1
            if self._inside > self._at_once:
                self._waiting = threading.get_ident()
        return True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        own = threading.get_ident()
        with self._lock:
            self._inside -= 1
            self._room_since.pop(own, None)
            if self._waiting is not None:
                if self._waiting != own:
                    self._room_since[self._waiting] = time.perf_counter()
                # What was launched last may be done first.
                self._waiting = None
        super().__exit__(kind, error, traceback)

    def took(self, began: float) -> float:
        """See ``Turns``; not counted from before the card had room."""
        now = time.perf_counter()
        with self._lock:
            return now - max(began, self._room_since.get(threading.get_ident(), began))
