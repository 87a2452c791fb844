"""Single keys of a terminal, without Enter."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import tty
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def keys() -> Iterator[Callable[[], str]]:
    """Has the terminal give keys as they are pressed, and show none; the function returns those
    since the last call. Ctrl-C stays a signal. Without a terminal to read from there are none.
    """
    try:
        fd = sys.stdin.fileno()
        before = termios.tcgetattr(fd)
    except (AttributeError, OSError, ValueError, termios.error):
        yield lambda: ""
        return
    # Nobody reads what is not a terminal's foreground: it would be stopped for it.
    if os.tcgetpgrp(fd) != os.getpgrp():
        yield lambda: ""
        return
    tty.setcbreak(fd)
    try:
        yield lambda: _pressed(fd)
    finally:
        # What was typed meanwhile was not for the shell.
        termios.tcsetattr(fd, termios.TCSAFLUSH, before)


def _pressed(fd: int) -> str:
    try:
        if select.select([fd], [], [], 0)[0]:
            return os.read(fd, 1024).decode(errors="replace")
    except OSError:
        # The terminal is gone: what ends the process comes as a signal.
        pass
    return ""
