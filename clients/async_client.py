"""The asynchronous client: one connection, driven by the event loop that it was made in."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import zmq

from batchyard.clients.calls import Call, Outputs
from batchyard.clients.connection import (
    CONNECT_TIMEOUT_S,
    JOIN_TIMEOUT_S,
    RESET_PAUSE_S,
    Connection,
    Search,
)
from batchyard.clients.inputs import (
    DEFAULT_SIGNATURE,
    Array,
    Inputs,
    Route,
    make_route,
    many_at_once,
    readable_metadata,
)
from batchyard.clients.placement import place
from batchyard.clients.region import empty
from batchyard.clients.session import (
    CLOSED,
    RECONNECT_TIMEOUT_S,
    Message,
    Session,
    deadline_after,
)
from batchyard.wire.endpoints import check, default_endpoints
from batchyard.wire.errors import DeadlineExceeded

_DRAIN_MAX = 64


class AsyncClient:
    """Talks to a Batchyard server from an event loop; use it as an async context manager.

    What is called in one turn of the loop travels together.
    """

    def __init__(
        self,
        endpoints: str | Sequence[str] | None = None,
        *,
        connect_timeout: float = CONNECT_TIMEOUT_S,
        reconnect_timeout: float = RECONNECT_TIMEOUT_S,
    ) -> None:
        """Remembers where to connect; ``connect``, or entering the context, does it.

        ``reconnect_timeout`` is how long calls wait when the connection was lost: see ``Client``.
        """
        if isinstance(endpoints, str):
            endpoints = [endpoints]
        self._endpoints = [check(endpoint) for endpoint in endpoints or default_endpoints()]
        self._connect_timeout = connect_timeout
        self._session = Session(deadline_after(reconnect_timeout, 0.0))
        self._routes: dict[tuple[Any, ...], Route] = {}
        self._calls: list[Call] = []
        self._unsent: list[Message] = []
        self._flush_scheduled = False
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._connection: Connection | None = None
        self._connections = 0
        self._connecting = asyncio.Lock()
        self._closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")
        # The local socket that is watched, and whether for room to send.
        self._local_fd = -1
        self._writing = False
        # Whether there are no descriptors to connect anew with.
        self._resetting = False

    def empty(self, shape: int | Sequence[int], dtype: npt.DTypeLike = np.float32) -> Array:
        """See ``Client.empty``."""
        return empty(self._session.region, shape, dtype)

    async def connect(self) -> None:
        """Connects to the first endpoint that answers. Raises Unavailable when none does.

        A client that was closed stays closed: Cancelled.
        """
        async with self._connecting:
            if self._closed:
                raise type(CLOSED)(CLOSED.message)
            if self._connection is None:
                await self._connect()

    async def _connect(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._context = zmq.Context()
        search = Search(self._context, self._endpoints, self._connect_timeout)
        changed = asyncio.Event()
        for fd in search.filenos():
            self._loop.add_reader(fd, changed.set)
        connection: Connection | None = None
        try:
            while (connection := search.step()) is None:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), search.wait_s())
                changed.clear()
        finally:
            for fd in [*search.filenos(), *(connection.filenos() if connection else ())]:
                self._loop.remove_reader(fd)
            search.close()
            if connection is None:
                self._context.term()
        self._session.receive(search.welcome, [])
        connection.join(search.welcome)
        try:
            await self._settle(connection)
        except BaseException:
            connection.close()
            self._context.term()
            raise
        self._connection = connection
        self._connections = 1
        for fd in connection.filenos():
            self._loop.add_reader(fd, self._far_readable)
        self._readable()

    async def _settle(self, connection: Connection) -> None:
        """Waits until the server has shared its memory, or has not."""
        until = time.monotonic() + JOIN_TIMEOUT_S
        changed = asyncio.Event()
        while not connection.is_settled and (left := until - time.monotonic()) > 0:
            fd = connection.local_fileno()
            self._loop.add_reader(fd, changed.set)
            try:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), left)
            finally:
                self._loop.remove_reader(fd)
            changed.clear()
            message = connection.receive()
            if message is not None:
                self._session.receive(*message)

    async def predict(
        self,
        model: str,
        inputs: Inputs = None,
        *,
        timeout: float | None = None,
        version: int | None = None,
        label: str | None = None,
        signature: str = DEFAULT_SIGNATURE,
        priority: int = 0,
    ) -> Outputs:
        """Runs one request; see ``Client.predict``. Cancelling the task cancels the request."""
        deadline = deadline_after(timeout, time.monotonic())
        route = self._routes.get((model, version, label, signature, priority))
        if route is None or route.connection != self._connections:
            route = await self._find_route(model, version, label, signature, priority, timeout)
        arrays, target, rows = route.arrays(inputs)
        promise: asyncio.Future[Outputs] = self._loop.create_future()
        placement = place(self._session.region, route, arrays, rows)
        call = Call(
            route, target, arrays, [rows] if rows else None, rows, deadline, promise, placement
        )
        self._calls.append(call)
        if not self._flush_scheduled:
            self._schedule_flush()
        try:
            return await promise
        except asyncio.CancelledError:
            self._session.cancel(call)
            self._schedule_flush()
            raise

    async def predict_many(
        self,
        model: str,
        inputs: Sequence[Inputs],
        *,
        timeout: float | None = None,
        version: int | None = None,
        label: str | None = None,
        signature: str = DEFAULT_SIGNATURE,
        priority: int = 0,
    ) -> list[Outputs]:
        """Runs many requests in one round trip: the outputs of each, in order."""
        deadline = deadline_after(timeout, time.monotonic())
        if not inputs:
            return []
        route = await self._find_route(model, version, label, signature, priority, timeout)
        results: list[Outputs] = []
        # In slices, so that a long list does not fill the server's queue by itself.
        step = many_at_once(route, inputs)
        for start in range(0, len(inputs), step):
            calls = [
                self.predict(
                    model,
                    item,
                    timeout=None if deadline == math.inf else max(deadline - time.monotonic(), 0),
                    version=version,
                    label=label,
                    signature=signature,
                    priority=priority,
                )
                for item in inputs[start : start + step]
            ]
            results += await asyncio.gather(*calls)
        return results

    async def models(self) -> list[dict[str, Any]]:
        """See ``Client.models``."""
        answer: list[dict[str, Any]] = await self._query("models", {}, None)
        return answer

    async def metadata(
        self, model: str, *, version: int | None = None, label: str | None = None
    ) -> dict[str, Any]:
        """See ``Client.metadata``."""
        arguments = {"model": model, "version": version, "label": label}
        return readable_metadata(await self._query("metadata", arguments, None))

    async def stats(self) -> dict[str, Any]:
        """See ``Client.stats``."""
        answer: dict[str, Any] = await self._query("stats", {}, None)
        return answer

    async def close(self) -> None:
        """Ends what still runs with CANCELLED and closes the connection. Idempotent."""
        async with self._connecting:
            self._closed = True
            connection, self._connection = self._connection, None
        if connection is None:
            return
        self._unwatch(connection)
        if self._timer is not None:
            self._timer.cancel()
        self._session.flush(self._calls, time.monotonic())
        self._calls = []
        self._session.fail(CLOSED)
        connection.close()
        if self._context is not None:
            self._context.term()

    async def __aenter__(self) -> AsyncClient:
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _find_route(
        self,
        model: str,
        version: int | None,
        label: str | None,
        signature: str,
        priority: int,
        timeout: float | None,
    ) -> Route:
        connection = self._connections
        arguments = {"model": model, "version": version, "label": label}
        metadata = await self._query("metadata", arguments, timeout)
        route = make_route(model, version, label, signature, priority, metadata, connection)
        self._routes[model, version, label, signature, priority] = route
        return route

    async def _query(self, what: str, arguments: dict[str, Any], timeout: float | None) -> Any:
        await self.connect()
        promise: asyncio.Future[Any] = self._loop.create_future()
        self._session.query(what, arguments, promise)
        self._schedule_flush()
        try:
            return await asyncio.wait_for(promise, timeout)
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before the server answered") from None

    def _schedule_flush(self) -> None:
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        calls, self._calls = self._calls, []
        self._unsent.extend(self._session.flush(calls, time.monotonic()))
        connection = self._connection
        if connection is None:
            self._unsent.clear()
            self._session.fail(CLOSED)
            return
        self._set_timer()
        if self._resetting:
            return
        sent = 0
        while sent < len(self._unsent) and connection.send(*self._unsent[sent]):
            sent += 1
        del self._unsent[:sent]
        self._watch_local(connection)
        if connection.has_input():
            # Sending took note of what arrived: the descriptor will not tell of it again.
            self._loop.call_soon(self._readable)

    def _far_readable(self) -> None:
        if self._connection is not None:
            self._connection.look_again()
        self._readable()

    def _watch_local(self, connection: Connection) -> None:
        """Follows the connection's local socket, which comes and goes."""
        fd = connection.local_fileno()
        if fd != self._local_fd:
            if self._local_fd >= 0:
                # The loop must forget it before another socket has its number.
                self._loop.remove_reader(self._local_fd)
                self._loop.remove_writer(self._local_fd)
            self._local_fd = fd
            self._writing = False
            if fd >= 0:
                self._loop.add_reader(fd, self._readable)
        writing = bool(self._unsent) and connection.wants_to_send
        if fd >= 0 and writing != self._writing:
            self._writing = writing
            if writing:
                self._loop.add_writer(fd, self._schedule_flush)
            else:
                self._loop.remove_writer(fd)

    def _unwatch(self, connection: Connection) -> None:
        """The connection is about to close its descriptors."""
        for fd in (*connection.filenos(), connection.local_fileno()):
            if fd >= 0:
                self._loop.remove_reader(fd)
                self._loop.remove_writer(fd)
        self._local_fd = -1
        self._writing = False

    def _readable(self) -> None:
        connection = self._connection
        if connection is None or self._resetting:
            return
        changes = connection.changes()
        # What came before a loss counts: then all of it is taken in first.
        for _ in itertools.repeat(None) if changes else range(_DRAIN_MAX):
            message = connection.receive()
            if message is None:
                break
            self._session.receive(*message)
        for up in changes:
            if up:
                self._connections += 1
                # Its answer says that there is a server, and what it takes.
                connection.hello()
            else:
                self._unsent.clear()
                self._session.lost(time.monotonic())
                self._set_timer()
                self._unwatch(connection)
                self._reset(connection)
                break
        self._session.region = connection.region
        if not connection.filenos():
            # It is to be connected anew as soon as there are descriptors.
            return
        self._watch_local(connection)
        if self._unsent or self._session.has_output:
            self._schedule_flush()
        if connection.has_input():
            self._loop.call_soon(self._readable)

    def _reset(self, connection: Connection) -> None:
        """Connects anew, as soon as there are descriptors for it."""
        if connection is not self._connection:
            return
        try:
            connection.reset()
        except (OSError, zmq.ZMQError):
            self._resetting = True
            self._loop.call_later(RESET_PAUSE_S, self._reset, connection)
            return
        self._resetting = False
        for fd in connection.filenos():
            self._loop.add_reader(fd, self._far_readable)
        self._readable()

    def _set_timer(self) -> None:
        at = self._session.next_deadline()
        if at >= self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_later(max(at - time.monotonic(), 0.0), self._expire)

    def _expire(self) -> None:
        self._timer_at = float("inf")
        self._session.expire(time.monotonic())
        self._set_timer()
