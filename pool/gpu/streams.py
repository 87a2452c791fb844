"""Events and streams: made once, used again."""

from __future__ import annotations

from collections import deque
from typing import Any

from batchyard.pool.gpu.driver import Driver


class Event:
    """An event that goes back to where it came from with the last reference to it.

    What waits for it on the card does so still then: CUDA takes the state of a wait when it is
    enqueued.
    """

    __slots__ = ("_spare", "handle")

    def __init__(self, handle: Any, spare: deque[Any]) -> None:
        self.handle = handle
        self._spare = spare

    def __del__(self) -> None:
        self._spare.append(self.handle)


class Events:
    """Events, of those that are timed or of those that are not."""

    def __init__(self, driver: Driver, timed: bool) -> None:
        self._driver = driver
        self._timed = timed
        self._spare: deque[Any] = deque()

    def record(self, stream: Any) -> Event:
        """An event for all that is enqueued on the stream so far."""
        try:
            handle = self._spare.pop()
        except IndexError:
            handle = self._driver.event(self._timed)
        event = Event(handle, self._spare)
        self._driver.record(handle, stream)
        return event

    def close(self) -> None:
        """Frees what is not in use."""
        while self._spare:
            self._driver.destroy_event(self._spare.pop())


class Streams:
    """Streams, each for one batch at a time."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._spare: deque[Any] = deque()

    def take(self) -> Any:
        """A stream on which nothing is enqueued."""
        try:
            return self._spare.pop()
        except IndexError:
            return self._driver.stream()

    def give_back(self, stream: Any) -> None:
        """Everything on it is done."""
        self._spare.append(stream)

    def close(self) -> None:
        """Ends what is not in use."""
        while self._spare:
            self._driver.destroy_stream(self._spare.pop())
