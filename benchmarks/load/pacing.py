"""A process that wakes up when it is to: what planned send times need of the kernel and Python."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import select
import selectors
import time
from collections.abc import Iterator

# prctl's; the kernel's default lets timers be 50 µs late.
_PR_SET_TIMERSLACK = 29
_SLACK_NS = 1
# Beside three loops that never sleep, on two cores, one wake-up in a hundred was 3 ms late, also
# with the best niceness; with this one in a thousand was 0.1 ms late.
_REALTIME_PRIORITY = 1
_NICENESS = -10
# But two generators of 15,000 requests/s each that go before all others leave a server nothing:
# they may only while all of them take less than this share of the machine.
_REALTIME_SHARE_MAX = 0.25
_CHECK_S = 0.25


class _PreciseSelector(selectors.EpollSelector):
    """Waits as long as asked for: epoll's timeout counts milliseconds, select's microseconds."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout > 0:
            # The selector's own descriptor, of the first: select takes those below 1024 only.
            if not select.select([self.fileno()], [], [], timeout)[0]:
                return []
            timeout = 0
        return super().select(timeout)


def precise_loop() -> asyncio.AbstractEventLoop:
    """An event loop whose timers are late by tens of microseconds, not by a millisecond."""
    return asyncio.SelectorEventLoop(_PreciseSelector())


@contextlib.contextmanager
def punctual(processes: int) -> Iterator[None]:
    """Has the kernel wake this one of so many processes in time, as far as its user may ask that.

    For use in a running event loop.
    """
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(_SLACK_NS), 0, 0, 0)
    niceness = os.getpriority(os.PRIO_PROCESS, 0)
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, min(niceness, _NICENESS))
    guard = _RealtimeGuard(_REALTIME_SHARE_MAX * len(os.sched_getaffinity(0)) / processes)
    try:
        guard.begin()
        yield
    finally:
        guard.end()
        os.setpriority(os.PRIO_PROCESS, 0, niceness)


class _RealtimeGuard:
    """Goes before all other processes until it takes too much of a processor."""

    def __init__(self, share_max: float) -> None:
        self._share_max = share_max
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_REALTIME_PRIORITY))
            self._check_later()

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))

    def _check_later(self) -> None:
        self._before = time.monotonic(), time.process_time()
        self._timer = asyncio.get_running_loop().call_later(_CHECK_S, self._check)

    def _check(self) -> None:
        at, cpu_s = self._before
        if time.process_time() - cpu_s > self._share_max * (time.monotonic() - at):
            self.end()
        else:
            self._check_later()


def collect_garbage() -> None:
    """Leaves nothing to collect of what was made so far. Takes tens of milliseconds."""
    gc.collect()
    gc.freeze()


@contextlib.contextmanager
def without_collections() -> Iterator[None]:
    """No garbage collection meanwhile: it takes milliseconds, just when a request is due."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
