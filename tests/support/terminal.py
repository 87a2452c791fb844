"""The command line in a terminal of its own: a pty, whose screen tests read."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from types import TracebackType

from support.waiting import DEADLINE_S

_COMMAND = [
    *(sys.executable, "-P", "-c"),
    f"from batchyard.wire.control import die_with_parent; die_with_parent({os.getpid()})\n"
    "from batchyard.cli.main import main; main()",
]
_HOME = "\x1b[H"
_SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07")


class Terminal:
    """``batchyard`` with these arguments; standard error is the terminal too."""

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        columns: int = 80,
        rows: int = 24,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Not started yet."""
        self._arguments = list(arguments)
        self._size = rows, columns
        self._environment = environment or {}
        self._fd = -1
        # All that was written to it.
        self.output = ""

    def __enter__(self) -> Terminal:
        self._fd, theirs = pty.openpty()
        self.resize(*self._size)
        dropped = {"NO_COLOR", "COLUMNS", "LINES"}
        environment = {k: v for k, v in os.environ.items() if k not in dropped}
        self.process = subprocess.Popen(
            [*_COMMAND, *self._arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**environment, "TERM": "xterm-256color", **self._environment},
            start_new_session=True,
            # So that a key is a signal.
            preexec_fn=_take_terminal,
        )
        os.close(theirs)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self._fd)

    def resize(self, rows: int, columns: int) -> None:
        """As a window is."""
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def press_ctrl_c(self) -> None:
        """The key."""
        self.press("\x03")

    def press(self, key: str) -> None:
        """A key, as what it sends."""
        os.write(self._fd, key.encode())

    def modes(self) -> list[object]:
        """How the terminal treats what is typed and written."""
        return termios.tcgetattr(self._fd)

    @property
    def screen(self) -> str:
        """What was drawn last, as text, of a program that begins at the top each time."""
        return as_text(self.output.rpartition(_HOME)[2])

    def read(self) -> bool:
        """Takes in what was written since; False once nobody can write any more."""
        while select.select([self._fd], [], [], 0.02)[0]:
            try:
                self.output += os.read(self._fd, 1 << 16).decode(errors="replace")
            except OSError:
                return False
        return True

    def wait_for(self, *texts: str, timeout_s: float = DEADLINE_S) -> None:
        """Until all of these are on the screen."""
        deadline = time.monotonic() + timeout_s
        while not all(text in self.screen for text in texts):
            is_open = self.read()
            late = not is_open or time.monotonic() > deadline
            missing = [text for text in texts if text not in self.screen]
            assert not (late and missing), f"{missing} not on the screen:\n{self.screen}"

    def wait_for_exit(self) -> int:
        """The exit code."""
        deadline = time.monotonic() + DEADLINE_S
        while self.read() and self.process.poll() is None:
            assert time.monotonic() < deadline, f"it does not end:\n{self.screen}"
        return self.process.wait(DEADLINE_S)


def as_text(output: str) -> str:
    """Without what moves the cursor or colours."""
    return _SEQUENCE.sub("", output)


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
