"""What this process has written to sockets, gRPC's as well, and nobody has received yet."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import stat
import struct
import termios

_LOOK_EVERY_S = 0.01


async def sent(timeout_s: float) -> None:
    """Returns when what was written to any socket before is received, or its connection is gone, or
    it takes too long.

    A process that ends with something unread takes what it has written along.
    """
    waiting = _sockets()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            while waiting := {fd for fd in waiting if _unreceived_nbytes(fd)}:
                await asyncio.sleep(_LOOK_EVERY_S)


def _sockets() -> set[int]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                found.add(int(name))
        except OSError:
            # The folder's own descriptor.
            continue
    return found


def _unreceived_nbytes(fd: int) -> int:
    try:
        return int(struct.unpack("i", fcntl.ioctl(fd, termios.TIOCOUTQ, b"\0" * 4))[0])
    except OSError:
        # It was closed, or listens.
        return 0
