"""Many HTTP/1.1 requests at once, on connections that are kept, in one event loop.

asyncio's transports and one small reader: a request takes 35 to 45 µs of a core, so that one
process sends thousands a second on time.
"""

from __future__ import annotations

import asyncio
import resource
from collections import deque

from batchyard.benchmarks.load.targets.http_answers import Answer, AnswerReader, NotHttp
from batchyard.wire.errors import DeadlineExceeded, Unavailable

# A connection carries one request at a time. So many can be open; further requests wait for one,
# and their latency, which counts from the planned time, tells of it.
_MOST_CONNECTIONS = 2048
_DESCRIPTORS_KEPT = 100
_CONNECT_S = 10.0


class HttpPool:
    """Connections to one server, at most so many."""

    def __init__(self, host: str, port: int, most: int = _MOST_CONNECTIONS) -> None:
        self._host = host
        self._port = port
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()
        self._connecting = 0
        self._waiting: deque[asyncio.Future[_Connection | None]] = deque()
        open_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most = max(1, min(most, open_files - _DESCRIPTORS_KEPT))

    async def connect(self) -> None:
        """One connection, to see that somebody is there. Raises Unavailable."""
        self._give(await self._connected())

    async def call(self, request: bytes, timeout_s: float | None) -> Answer:
        """Sends a request and waits for its answer.

        Raises DeadlineExceeded, after which the connection is closed, since HTTP/1.1 has no other
        way to give a request up; Unavailable when there is no connection, or it broke.
        """
        if timeout_s is None:
            return await self._call(request)
        try:
            async with asyncio.timeout(timeout_s):
                return await self._call(request)
        except TimeoutError:
            raise DeadlineExceeded(f"no answer within {timeout_s:.3f} s") from None

    async def close(self) -> None:
        """Ends all connections. Idempotent."""
        for connection in list(self._open):
            connection.abort()
        self._idle.clear()
        # A transport closes in the loop's next turn.
        await asyncio.sleep(0)

    async def _call(self, request: bytes) -> Answer:
        connection = await self._take()
        try:
            return await self._call_over(connection, request)
        except _ClosedWhileIdle:
            # Servers close what was idle for long; whether it was sees who sends next.
            return await self._call_over(await self._connected(), request)

    async def _call_over(self, connection: _Connection, request: bytes) -> Answer:
        try:
            answer = await connection.call(request)
        except BaseException:
            self._drop(connection)
            raise
        if answer.keeps:
            self._give(connection)
        else:
            self._drop(connection)
        return answer

    async def _take(self) -> _Connection:
        while True:
            # The one used last: it is the least likely to be closed for idleness.
            connection = self._idle.pop() if self._idle else None
            if connection is None:
                if len(self._open) + self._connecting < self._most:
                    return await self._connected()
                connection = await self._given()
            if connection is not None:
                if connection.usable:
                    return connection
                self._open.discard(connection)

    async def _given(self) -> _Connection | None:
        """A connection that another request is done with, or None: there is room for a new one."""
        waiter: asyncio.Future[_Connection | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and (given := waiter.result()) is not None:
                self._give(given)
            raise

    async def _connected(self) -> _Connection:
        self._connecting += 1
        loop = asyncio.get_running_loop()
        connection: _Connection | None = None
        try:
            async with asyncio.timeout(_CONNECT_S):
                _, connection = await loop.create_connection(_Connection, self._host, self._port)
        except (OSError, TimeoutError) as error:
            raise Unavailable(
                f"http://{self._host}:{self._port} cannot be reached: {error}"
            ) from None
        else:
            self._open.add(connection)
        finally:
            self._connecting -= 1
            if connection is None:
                self._there_is_room()
        return connection

    def _give(self, connection: _Connection) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                return
        self._idle.append(connection)

    def _drop(self, connection: _Connection) -> None:
        connection.abort()
        self._open.discard(connection)
        self._there_is_room()

    def _there_is_room(self) -> None:
        """For a connection more: whoever waits for one may open it."""
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return


class _ClosedWhileIdle(Unavailable):
    """The server closed a connection that had answered before, and took no notice of a request."""


class _Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._reader = AnswerReader()
        self._answer: asyncio.Future[Answer] | None = None
        self._calls = 0
        self.usable = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # asyncio sets TCP_NODELAY by itself.
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.usable = True

    def data_received(self, data: bytes) -> None:
        try:
            answer = self._reader.feed(data)
        except NotHttp as error:
            self._fail(Unavailable(f"the server does not answer as HTTP/1.1 does: {error}"))
            return
        if answer is None:
            return
        asked, self._answer = self._answer, None
        if asked is None or asked.done():
            # Nobody asked, or nobody waits any more: what comes next could not be told apart.
            self._fail(None)
        else:
            asked.set_result(answer)

    def connection_lost(self, error: Exception | None) -> None:
        kind = _ClosedWhileIdle if self._calls > 1 and self._reader.empty else Unavailable
        self._fail(kind("the server closed the connection"))

    def call(self, request: bytes) -> asyncio.Future[Answer]:
        """The answer to a request; the future fails with Unavailable."""
        assert self._transport is not None
        self._calls += 1
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer

    def abort(self) -> None:
        """Closes the connection now."""
        self._fail(None)

    def _fail(self, error: Exception | None) -> None:
        self.usable = False
        if self._transport is not None:
            self._transport.abort()
        if error is not None and self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
