"""Child processes of a server: started bound to their supervisor, watched, reaped."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from batchyard.wire.control import PARENT_SIGNALS
from batchyard.wire.link import Link, LinkClosed


class Child:
    """A process of ours: its control link, and a descriptor that tells of its end."""

    def __init__(
        self,
        name: str,
        module: str,
        settings: Mapping[str, Any],
        fds: Sequence[int],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Starts ``python -m module`` and sends it its settings and copies of ``fds``.

        ``environment`` is added to our own.
        """
        self.name = name
        self.link, theirs = Link.pair()
        # -P: what lies in the working directory must not stand in for an installed module.
        arguments = [sys.executable, "-P", "-m", module, str(theirs.fileno()), str(os.getpid())]
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, PARENT_SIGNALS)
        try:
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                # Standard output is the supervisor's, for those who wait for its line.
                stdout=sys.stderr.fileno() if sys.stderr else subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                # A terminal's Ctrl-C goes to its foreground group: only the supervisor acts on it.
                process_group=0,
                env={**os.environ, **(environment or {})},
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        theirs.close()
        self.sentinel = os.pidfd_open(self._process.pid)
        # When it is gone already, its sentinel tells.
        with contextlib.suppress(LinkClosed):
            self.link.send(settings, fds)

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def reap(self) -> int:
        """Waits for the end of a process that is ending; its exit code, negative for a signal."""
        self.kill()
        code = self._process.wait()
        if self.sentinel >= 0:
            os.close(self.sentinel)
            self.sentinel = -1
            self.link.close()
        return code

    def kill(self) -> None:
        """Ends it now, whatever it is doing."""
        if self._process.returncode is None:
            self._kill_group()

    def _kill_group(self) -> None:
        """Ends it, and what a model forked: that has the arena mapped, and would stay for ever."""
        # Until the process is waited for, nobody else can have its number.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)


def describe_exit(code: int) -> str:
    """``exit code 3`` or ``signal SIGKILL``."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"
