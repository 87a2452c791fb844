"""A broker without sockets or time, which remembers what a session's connection has brought it."""

from __future__ import annotations

from typing import Any

import numpy as np
from support.sessions import answer, read, refuse

from batchyard.clients.session import Message, Session
from batchyard.wire import protocol
from batchyard.wire.errors import BatchyardError
from batchyard.wire.protocol import MessageType

Request = tuple[int, int]


class VirtualServer:
    """Answers rows times ten, when it is told to. ``open`` has what it has not answered."""

    def __init__(self, session: Session) -> None:
        self.session = session
        # By message id and number: the values in the rows of a request.
        self.open: dict[Request, list[int]] = {}
        # What each message had when it came first.
        self._seen: dict[int, tuple[Any, list[Any]]] = {}

    def take(self, message: Message) -> list[Request]:
        """Takes a message in. Returns which requests it cancels."""
        type_, body = protocol.decode(message[0])
        if type_ is MessageType.CANCEL:
            return [key for segment in body for key in self._open_of(*segment)]
        sent = read(message)
        values = sent.values()
        seen = self._seen.setdefault(sent.id, (sent.predict.rows, values))
        assert seen == (sent.predict.rows, values)
        assert sent.id not in {message_id for message_id, _ in self.open}
        rows = sent.predict.rows
        row = 0
        for request, n in enumerate([1] * rows if isinstance(rows, int) else rows or []):
            self.open[sent.id, request] = [int(value) for value in values[row : row + n]]
            row += n
        return []

    def _open_of(self, message_id: int, first: int, count: int) -> list[Request]:
        return [
            (id_, request)
            for id_, request in self.open
            if id_ == message_id and first <= request < first + count
        ]

    def answer(self, requests: list[Request]) -> None:
        """One RESULT for these."""
        if requests:
            values = [value for key in requests for value in self.open.pop(key)]
            answer(self.session, [(*key, 1) for key in requests], y=np.array(values) * 10)

    def refuse(self, requests: list[Request], error: BatchyardError) -> None:
        """One ERROR for these."""
        if requests:
            for key in requests:
                del self.open[key]
            refuse(self.session, [(*key, 1) for key in requests], error)
