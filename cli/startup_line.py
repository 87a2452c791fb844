"""How far a server's start has come: one line, for a person at a terminal."""

from __future__ import annotations

import os
import sys
import threading
import time
from types import TracebackType
from typing import IO, Self

from batchyard.pool.startup import Startup

_BAR_WIDTH = 10
# A server whose start takes no longer needs no line.
_AFTER_S = 0.3
_STEP_S = 0.2
_CLEAR = "\r\x1b[K"
_TEXT_MAX = 79


class StartupLine:
    """Drawn on standard error while its context is open, if that is a terminal.

    Children write their logs to the same terminal and know nothing of the line. So the cursor
    stays at its beginning: what they write stands over it, and it is drawn again below.
    """

    def __init__(self, stream: IO[str] | None = None, *, is_wanted: bool = True) -> None:
        """Nothing is drawn yet; nor ever, unless ``is_wanted``, as beside JSON it is not."""
        self._stream = stream or sys.stderr
        is_terminal = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._is_drawn = is_terminal and is_wanted
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._text = "starting …"
        self._since = time.monotonic()

    def __enter__(self) -> Self:
        if self._is_drawn:
            # It starts with all signals of the server blocked, as its caller has them.
            threading.Thread(target=self._keep, name="batchyard-startup", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end()

    def __call__(self, startup: Startup) -> None:
        """For the supervisor."""
        self._text = text(startup)
        self._draw()

    def end(self) -> None:
        """It is gone; so is what it was about."""
        self._over.set()
        if self._is_drawn:
            with self._lock:
                self._is_drawn = False
                self._stream.write(_CLEAR)
                self._stream.flush()

    def _keep(self) -> None:
        while not self._over.wait(_STEP_S):
            self._draw()

    def _draw(self) -> None:
        elapsed_s = time.monotonic() - self._since
        with self._lock:
            if self._is_drawn and elapsed_s > _AFTER_S:
                line = f"{elapsed_s:3.0f} s  {self._text}"
                self._stream.write(f"{_CLEAR}{line[: _width(self._stream)]}\r")
                self._stream.flush()


def text(startup: Startup) -> str:
    """``starting: 1 of 2 workers ready  █████·····  warming up at 32 rows: resnet``."""
    filled = round(_BAR_WIDTH * startup.share)
    bar = "█" * filled + "·" * (_BAR_WIDTH - filled)
    what = "".join(char for char in startup.what if char.isprintable())
    return f"starting: {startup.ready_workers} of {startup.workers} workers ready  {bar}  {what}"


def _width(stream: IO[str]) -> int:
    try:
        return min(_TEXT_MAX, os.get_terminal_size(stream.fileno()).columns - 1)
    except OSError:
        return _TEXT_MAX
