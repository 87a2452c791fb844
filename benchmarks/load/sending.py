"""Sends the requests of one generator, by a schedule or by callers, and notes each outcome.

This runs between two requests that are due: whatever can be done before or after is done there.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence

from batchyard.benchmarks.load.records import ANSWERED, FAILED, SKIPPED, Records
from batchyard.benchmarks.load.targets.base import Send
from batchyard.wire.errors import BatchyardError, Unknown, shortened

# Requests that are overdue are sent in portions: between them answers are taken in.
_AT_ONCE = 64
# After an error a caller waits so long, or one that is refused at once would do nothing but ask.
_AFTER_ERROR_S = 0.001


class Sender:
    """Sends single requests. ``requests`` are the variants of each kind, ``deadlines`` theirs.

    Made in the event loop that it works in.
    """

    def __init__(
        self,
        requests: Sequence[Sequence[Send]],
        deadlines: Sequence[float | None],
        records: Records,
    ) -> None:
        self.records = records
        # The first message of each error's code.
        self.messages: dict[str, str] = {}
        self._loop = asyncio.get_running_loop()
        self._requests = requests
        self._deadlines = deadlines
        # The event loop itself keeps no task alive.
        self._tasks: dict[int, asyncio.Task[bool]] = {}

    def start(self, index: int, due: float) -> None:
        """Sends a request, without waiting for its answer."""
        self._tasks[index] = self._loop.create_task(self.run(index, due))

    async def run(self, index: int, due: float) -> bool:
        """Sends a request and waits for its answer; whether there was one, and no error."""
        records = self.records
        kind = records.kind[index]
        variants = self._requests[kind]
        deadline_s = self._deadlines[kind]
        now = time.monotonic()
        records.sent[index] = now
        # How late this process is comes off the time that the server has.
        left = None if deadline_s is None else due + deadline_s - now
        if left is not None and left <= 0:
            self._tasks.pop(index, None)
            records.outcome[index] = SKIPPED
            return False
        outcome = ANSWERED
        try:
            await variants[index % len(variants)](left)
        except BatchyardError as error:
            outcome = self._note(error)
            # It, its frames and its future hold each other, and garbage is not collected now.
            error.__traceback__ = None
        except Exception as error:
            outcome = self._note(Unknown(f"{type(error).__name__}: {error}"))
            error.__traceback__ = None
        finally:
            self._tasks.pop(index, None)
        records.done[index] = time.monotonic()
        # Last: whoever reads it finds the rest there.
        records.outcome[index] = outcome
        return outcome == ANSWERED

    def _note(self, error: BatchyardError) -> int:
        if error.code not in self.messages:
            self.messages[error.code] = shortened(error.message)
        return FAILED + error.number

    async def finish(self, until: float) -> None:
        """Waits until all is answered, but not longer than that; what then is not is given up."""
        if self._tasks:
            left = max(until - time.monotonic(), 0.0)
            await asyncio.wait(list(self._tasks.values()), timeout=left)
        given_up = list(self._tasks.values())
        for task in given_up:
            task.cancel()
        await asyncio.gather(*given_up, return_exceptions=True)


class OpenLoop:
    """Sends ``count`` requests when they are planned, whatever the server does."""

    def __init__(self, sender: Sender, count: int, start_at: float, give_up_at: float) -> None:
        self._sender = sender
        self._planned = sender.records.planned
        self._count = count
        self._start_at = start_at
        self._give_up_at = give_up_at
        self._next = 0

    async def run(self) -> None:
        """Returns when all are sent, or when it is too late to send more."""
        self._loop = asyncio.get_running_loop()
        self._over = self._loop.create_future()
        self._tick()
        await self._over

    def _tick(self) -> None:
        now = time.monotonic()
        stop = min(self._next + _AT_ONCE, self._count)
        while self._next < stop:
            due = self._start_at + self._planned[self._next]
            if due > now:
                self._loop.call_at(due, self._tick)
                return
            self._sender.start(self._next, due)
            self._next += 1
            now = time.monotonic()
        if self._next == self._count or now > self._give_up_at:
            self._over.set_result(None)
        else:
            self._loop.call_soon(self._tick)


class ClosedLoop:
    """So many callers, each of which sends when it has its answer, from now until ``end_at``.

    Requests are of the given ``kinds`` in turn.
    """

    def __init__(
        self, sender: Sender, kinds: Sequence[int], start_at: float, end_at: float
    ) -> None:
        self._sender = sender
        self._kinds = kinds
        self._start_at = start_at
        self._end_at = end_at
        self._indexes = itertools.count()

    async def run(self, callers: int, give_up_at: float) -> None:
        """Returns when all are answered after the end, or given up. Raises what went wrong."""
        tasks = [asyncio.ensure_future(self._call()) for _ in range(callers)]
        left = max(give_up_at - time.monotonic(), 0.0)
        done, given_up = await asyncio.wait(tasks, timeout=left)
        for task in given_up:
            task.cancel()
        await asyncio.gather(*given_up, return_exceptions=True)
        for task in done:
            task.result()

    async def _call(self) -> None:
        records = self._sender.records
        while (now := time.monotonic()) < self._end_at:
            index = next(self._indexes)
            if index >= records.capacity:
                raise RuntimeError(f"more than {records.capacity} requests: no room to note them")
            records.planned[index] = now - self._start_at
            records.kind[index] = self._kinds[index % len(self._kinds)]
            if not await self._sender.run(index, now):
                await asyncio.sleep(_AFTER_ERROR_S)
