"""The signals that a server acts on, as events of its loop."""

from __future__ import annotations

import contextlib
import selectors
import signal
import socket
from collections.abc import Callable
from types import TracebackType

from batchyard.wire import control


class Signals:
    """While the context is open, a signal wakes up the loop around ``selector``.

    After that they are ignored: what is left is an exit code, which is not to be theirs. To block
    them would not do: threads of libraries, such as numpy's, do not.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        *,
        on_stop: Callable[[], None],
        on_reload: Callable[[], None],
    ) -> None:
        """Both are called in the loop."""
        self._selector = selector
        self._on_stop = on_stop
        self._on_reload = on_reload
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        self._stack.callback(ours.close)
        self._stack.callback(theirs.close)
        self._stack.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(theirs.fileno()))
        for number in control.PARENT_SIGNALS:
            signal.signal(number, lambda *_: None)
        self._selector.register(ours, selectors.EVENT_READ, lambda: self._heard(ours))
        # Who calls may have blocked them, so that none ends the process before or after.
        mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, control.PARENT_SIGNALS)
        self._stack.callback(signal.pthread_sigmask, signal.SIG_SETMASK, mask)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number in control.PARENT_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        self._stack.close()

    def _heard(self, wakeup: socket.socket) -> None:
        for number in wakeup.recv(4096):
            if number in control.STOP_SIGNALS:
                self._on_stop()
            elif number == signal.SIGHUP:
                self._on_reload()
