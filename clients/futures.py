"""What ``Client.submit`` returns."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from concurrent.futures import _base as states
from typing import TYPE_CHECKING, Any

from batchyard.clients.calls import Call, Outputs

if TYPE_CHECKING:
    from batchyard.clients.client import Client

_CANCELLING = threading.Lock()
# Guards the making of conditions, and the states of futures that have none. Held for an instant.
_LOCK = threading.Lock()


class _Condition(threading.Condition):
    """Enters and leaves in one step each: Ctrl-C between two would leave the lock taken."""

    if not TYPE_CHECKING:
        __enter__ = property(lambda self: self._lock.__enter__)
        __exit__ = property(lambda self: self._lock.__exit__)


class PredictFuture(Future[Outputs]):
    """The future of a submitted request. Cancelling it also tells the server.

    A stock Future makes a Condition when it is made, and locks it again and again: a third of
    all that a small request costs here. This one makes it when somebody waits for the future, or
    cancels it; a future that is done by then never needs one. It relies on the attributes that
    ``concurrent.futures`` itself uses for futures of others (``_state``, ``_condition``,
    ``_waiters``), which are the same in all versions of Python 3.
    """

    def __init__(self, client: Client) -> None:
        # Not the base class's: see above.
        self._made: threading.Condition | None = None
        self._state = states.PENDING
        self._result: Outputs | None = None
        self._exception: BaseException | None = None
        self._waiters = []
        self._done_callbacks: list[Any] = []
        self._client = client
        self.call: Call | None = None
        self._told = False

    if not TYPE_CHECKING:
        # An attribute to everybody who looks at the type.
        @property
        def _condition(self) -> threading.Condition:
            if self._made is None:
                # Before the lock is taken: making one may run finalizers, which may take it too.
                condition = _Condition()
                with _LOCK:
                    if self._made is None:
                        self._made = condition
            return self._made

    def done(self) -> bool:
        """Whether it has a result or an error, or was cancelled."""
        return self._state not in (states.PENDING, states.RUNNING)

    def result(self, timeout: float | None = None) -> Outputs:
        """The outputs; waits for them. Raises the request's error."""
        if self._state == states.FINISHED and self._exception is None:
            return self._result  # type: ignore[return-value]
        return super().result(timeout)

    def set_result(self, result: Outputs) -> None:
        """Ends it; for the client only."""
        with _LOCK:
            is_mine = self._made is None and self._state == states.PENDING
            if is_mine:
                self._result = result
                self._state = states.FINISHED
        if not is_mine:
            # Somebody waits for it, or it has ended: the stock future knows what to do.
            super().set_result(result)

    def cancel(self) -> bool:
        """Gives the request up, unless it is answered already."""
        if not super().cancel():
            return False
        # Not while callbacks run: they may cancel others.
        with _CANCELLING:
            first, self._told = not self._told, True
        if first:
            # Tells those who wait for it with concurrent.futures.wait.
            self.set_running_or_notify_cancel()
        if self.call is not None:
            self._client._give_up(self.call)
        return True
