"""Loads beside others that serve: on processors that nobody else wants at that moment."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

from batchyard.wire import log

_PATIENCE_S = 10.0


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """This thread, and those begun by it, yield to whoever wants a processor until the block ends.

    Only where they can come back from that: the kernel allows it to root, and to those whose
    RLIMIT_NICE permits their nice value (``LimitNICE=0`` in a systemd unit). Elsewhere nothing
    is changed. They yield for ten seconds at most.
    """
    if not _can_come_back():
        log.info("loads_at_normal_priority", reason="RLIMIT_NICE does not let it return from less")
        yield
        return
    # Where nobody ever leaves a processor idle it would never be done.
    patience = threading.Timer(_PATIENCE_S, _wake_all)
    patience.daemon = True
    patience.start()
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    try:
        yield
    finally:
        patience.cancel()
        _wake_all()


def _can_come_back() -> bool:
    """Tried out, on a thread that ends with it: no limit or capability says it as surely."""
    came_back = False

    def there_and_back() -> None:
        nonlocal came_back
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
            came_back = True

    thread = threading.Thread(target=there_and_back)
    thread.start()
    thread.join()
    return came_back


def _wake_all() -> None:
    """Has all threads of this process run as usual, those of the libraries in it too."""
    # This one first: what it begins from now on is no quieter than itself. Those that a quiet
    # thread began while they were listed are found by listing them again.
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    while quiet := [thread for thread in _threads() if _is_quiet(thread)]:
        for thread in quiet:
            with contextlib.suppress(ProcessLookupError):
                os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))


def _threads() -> list[int]:
    return [int(name) for name in os.listdir("/proc/self/task")]


def _is_quiet(thread: int) -> bool:
    try:
        return os.sched_getscheduler(thread) == os.SCHED_IDLE
    except ProcessLookupError:
        return False
