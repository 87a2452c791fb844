"""A process that wakes up when it is to: an event loop for planned send times."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import select
import selectors
from collections.abc import Iterator

# prctl's; the kernel's default lets timers be 50 µs late.
_PR_SET_TIMERSLACK = 29
_SLACK_NS = 1
# Of a user who may: what is due is not to wait for others' time slices.
_NICENESS = -10


class _PreciseSelector(selectors.EpollSelector):
    """Waits as long as asked for: epoll's timeout counts milliseconds, select's microseconds."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout > 0:
            # A descriptor of its own, one of the first: select takes those below 1024 only.
            select.select([self.fileno()], [], [], timeout)
            timeout = 0
        return super().select(timeout)


def precise_loop() -> asyncio.AbstractEventLoop:
    """An event loop whose timers are off by tens of microseconds, not by a millisecond."""
    return asyncio.SelectorEventLoop(_PreciseSelector())


def be_punctual() -> None:
    """Has the kernel wake this process when it asked to be."""
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(_SLACK_NS), 0, 0, 0)
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, _NICENESS)


@contextlib.contextmanager
def without_collections() -> Iterator[None]:
    """No garbage collection meanwhile: it takes milliseconds, just when a request is due."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()
