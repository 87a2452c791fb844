"""Looks for a server at several endpoints."""

from __future__ import annotations

import time
from collections.abc import Sequence

import zmq

from batchyard.clients.connection import Connection, is_welcome
from batchyard.wire.errors import Unavailable
from batchyard.wire.keys import ClientCurve
from batchyard.wire.tensors import Buffer

# Once one endpoint has answered, how long the others may still take.
PREFERENCE_S = 0.1


def nobody_answered(
    endpoints: Sequence[str], timeout_s: float, doubts: Sequence[str] = ()
) -> Unavailable:
    """The error of a client that found no server; ``doubts`` are what may be the reasons."""
    why = "; ".join(filter(None, doubts)) or "is `batchyard serve` running?"
    return Unavailable(
        f"no server answered at {', '.join(endpoints)} within {timeout_s:g} s; {why}"
    )


class Search:
    """Looks for a server at several endpoints: the first of them that answers in time.

    A driver calls ``step`` until it gives a connection, waiting on ``filenos`` in between.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoints: Sequence[str],
        timeout_s: float,
        curve: ClientCurve | None = None,
    ) -> None:
        self.welcome: Buffer = b""
        self._endpoints = list(endpoints)
        self._candidates = [Connection(context, endpoint, curve) for endpoint in endpoints]
        self._welcomes: dict[Connection, Buffer] = {}
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._settled_at = self._deadline

    def filenos(self) -> list[int]:
        """Descriptors that tell when ``step`` may have something to do."""
        return [fd for candidate in self._candidates for fd in candidate.filenos()]

    def step(self) -> Connection | None:
        """The connection, once it is decided; ``welcome`` has the broker's first message then.

        Raises Unavailable when nobody answered in time, and before that the error of a server
        that does not let this client in, when no other may answer.
        """
        for candidate in self._candidates:
            candidate.look_again()
            while candidate.has_input():
                if True in candidate.changes():
                    candidate.hello()
                message = candidate.receive()
                if message is not None and is_welcome(message[0]):
                    self._welcomes.setdefault(candidate, message[0])
        refusals = [c.refusal for c in self._candidates if c.refusal is not None]
        now = time.monotonic()
        if self._welcomes and self._settled_at == self._deadline:
            self._settled_at = min(now + PREFERENCE_S, self._deadline)
        for candidate in self._candidates:
            if candidate in self._welcomes:
                self.welcome = self._welcomes[candidate]
                self._candidates.remove(candidate)
                return candidate
            if now < self._settled_at and candidate.refusal is None:
                # One that is asked first may still answer.
                return None
        if refusals and (len(refusals) == len(self._candidates) or now >= self._deadline):
            raise refusals[0]
        if now < self._deadline:
            return None
        raise nobody_answered(
            self._endpoints, self._timeout_s, [candidate.doubt for candidate in self._candidates]
        )

    def wait_s(self) -> float:
        """How long to wait for the descriptors at most before the next ``step``."""
        return max(self._settled_at - time.monotonic(), 0.0)

    def close(self) -> None:
        """Closes the connections that were not chosen."""
        for candidate in self._candidates:
            candidate.close()
