"""How far the start of a server has come, for a person who waits. Pure."""

from __future__ import annotations

from collections.abc import Callable


class Startup:
    """The first processes of all workers, until each is ready; ``changed`` is called each time."""

    def __init__(self, workers: int, changed: Callable[[Startup], None]) -> None:
        """Nothing is loaded yet."""
        self.workers = workers
        self.ready_workers = 0
        # What was done last, in words.
        self.what = ""
        self._changed = changed
        # By the worker's id: which share of its models is loaded and warmed up.
        self._shares: dict[int, float] = {}

    @property
    def share(self) -> float:
        """Of all that is to be done, from 0 to 1."""
        return sum(self._shares.values()) / max(1, self.workers)

    @property
    def is_over(self) -> bool:
        """Whether all are ready; what comes later is no start."""
        return self.ready_workers >= self.workers

    def loading(self, id: int, share: float, what: str) -> None:
        """A worker has done that share, and now does this."""
        if not self.is_over:
            self._shares[id], self.what = share, what
            self._changed(self)

    def ready(self, id: int) -> None:
        """A worker can take requests."""
        if not self.is_over:
            self._shares[id] = 1.0
            self.ready_workers += 1
            self._changed(self)
