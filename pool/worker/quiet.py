"""Loads beside others that serve: on processors that others leave, as far as the kernel lets it.

Not by SCHED_IDLE: the kernel takes a processor with nothing but such a thread for an idle one,
wakes others there, and lets them wait for its next tick (docs/decisions/0008).
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

from batchyard.wire import log

_LOWEST = 19
_PATIENCE_S = 10.0


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """This thread, and those begun by it, yield to whoever wants a processor until the block ends.

    Only where they can come back from that: the kernel allows it to root, and to those whose
    RLIMIT_NICE permits their nice value (``LimitNICE=+0`` in a systemd unit). Elsewhere nothing
    is changed. They yield for ten seconds at most.
    """
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    if not _can_come_back(usual):
        log.info("loads_at_normal_priority", reason="RLIMIT_NICE does not let it return from less")
        yield
        return
    # Where others never leave a processor it would take for ever.
    patience = threading.Timer(_PATIENCE_S, _wake_all, [usual])
    patience.daemon = True
    patience.start()
    os.setpriority(os.PRIO_PROCESS, 0, _LOWEST)
    try:
        yield
    finally:
        patience.cancel()
        _wake_all(usual)


def _can_come_back(usual: int) -> bool:
    """Tried out, on a thread that ends with it: no limit or capability says it as surely."""
    came_back = False

    def there_and_back() -> None:
        nonlocal came_back
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, _LOWEST)
            os.setpriority(os.PRIO_PROCESS, 0, usual)
            came_back = True

    thread = threading.Thread(target=there_and_back)
    thread.start()
    thread.join()
    return came_back


def _wake_all(usual: int) -> None:
    """Has all threads of this process run as usual, those of the libraries in it too."""
    # This one first: what it begins from now on is no quieter than itself. Those that a quiet
    # thread began while they were listed are found by listing them again.
    os.setpriority(os.PRIO_PROCESS, 0, usual)
    while quiet := [thread for thread in _threads() if _is_quieter(thread, usual)]:
        for thread in quiet:
            with contextlib.suppress(ProcessLookupError):
                os.setpriority(os.PRIO_PROCESS, thread, usual)


def _threads() -> list[int]:
    return [int(name) for name in os.listdir("/proc/self/task")]


def _is_quieter(thread: int, usual: int) -> bool:
    try:
        return os.getpriority(os.PRIO_PROCESS, thread) > usual
    except ProcessLookupError:
        return False
