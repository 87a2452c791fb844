"""What moves an asynchronous client's messages: an event loop, which watches the sockets."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Sequence
from typing import Any

import zmq

from batchyard.clients.calls import Call, Promise
from batchyard.clients.connection import (
    JOIN_TIMEOUT_S,
    REFUSED_PAUSE_S,
    RESET_PAUSE_S,
    Connection,
)
from batchyard.clients.region import ClientRegion
from batchyard.clients.relay import Relay
from batchyard.clients.search import Search
from batchyard.clients.session import CLOSED, Message, Session
from batchyard.wire.keys import ClientCurve

_DRAIN_MAX = 64


class LoopIo:
    """Sends calls, receives answers, ends what is late. For one event loop."""

    def __init__(
        self,
        endpoints: Sequence[str],
        connect_timeout: float,
        reconnect_timeout: float,
        relay: Relay | None = None,
        curve: ClientCurve | None = None,
    ) -> None:
        """Not connected yet. With a ``relay`` it is one of several: see ``IoThread``."""
        # Counts connections: it changes when the server may have.
        self.connections = 0
        self._endpoints = endpoints
        self._connect_timeout = connect_timeout
        self._curve = curve
        self.session = Session(reconnect_timeout)
        self.session.relay = relay
        self._calls: list[Call] = []
        self._unsent: list[Message] = []
        self._flush_scheduled = False
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._connection: Connection | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")
        # The local socket that is watched, and whether for room to send.
        self._local_fd = -1
        self._writing = False
        # Whether there are no descriptors to connect anew with.
        self._resetting = False

    def pick(self) -> LoopIo:
        """See ``Servers``: there is no choice."""
        return self

    @property
    def endpoint(self) -> str:
        """Where the server is."""
        return self._endpoints[0] if self._connection is None else self._connection.endpoint

    @property
    def region(self) -> ClientRegion | None:
        """The memory that is shared with the server, if any is."""
        return self.session.region

    @property
    def load(self) -> int:
        """How many requests are under way."""
        return self.session.load + len(self._calls)

    @property
    def is_settled(self) -> bool:
        """Whether all is known of the server that there is."""
        return self._connection is not None and self._connection.is_settled

    @property
    def doubt(self) -> str:
        """What may be the reason that no server answers; or empty."""
        return "" if self._connection is None else self._connection.doubt

    async def connect(self) -> None:
        """Connects to the first endpoint that answers. Raises Unavailable when none does."""
        self._loop = asyncio.get_running_loop()
        if self.session.relay is not None:
            self._await()
            return
        self._context = zmq.Context()
        search = Search(self._context, self._endpoints, self._connect_timeout, self._curve)
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
        self.session.receive(search.welcome, [])
        connection.join(search.welcome)
        try:
            await self._settle(connection)
        except BaseException:
            connection.close()
            self._context.term()
            raise
        self.connections = 1
        self._begin(connection)

    def _await(self) -> None:
        """A connection to a server that may come."""
        self._context = zmq.Context()
        connection = Connection(self._context, self._endpoints[0], self._curve)
        connection.join(None)
        self.session.lost(time.monotonic())
        self._begin(connection)

    def _begin(self, connection: Connection) -> None:
        self._connection = connection
        for fd in connection.filenos():
            self._loop.add_reader(fd, self._far_readable)
        self._readable()
        self._set_timer()

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
                self.session.receive(*message)

    def add(self, call: Call) -> None:
        """Sends a call, with all others of this turn of the loop."""
        self._calls.append(call)
        if not self._flush_scheduled:
            self._schedule_flush()

    def add_from_elsewhere(self, call: Call) -> None:
        """Sends a call that another server does not take."""
        self.add(call)

    def query(self, what: str, arguments: dict[str, Any], promise: Promise) -> None:
        """Asks the broker something."""
        self.session.query(what, arguments, promise)
        self._schedule_flush()

    def cancel(self, call: Call) -> None:
        """Gives a call up."""
        self.session.cancel(call)
        self._schedule_flush()

    def hand_over(self) -> None:
        """Has what waits here go to another server, if this one is gone."""
        self._loop.call_soon(self.session.hand_over)

    def leave(self) -> None:
        """Ends when everything has gone to another server."""
        self._loop.call_soon(self._leave)

    def _leave(self) -> None:
        self.session.lost(time.monotonic())
        self.close()

    def close(self) -> None:
        """Ends everything that waits, and closes the connection. Idempotent."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        self._unwatch(connection)
        if self._timer is not None:
            self._timer.cancel()
        calls, self._calls = self._calls, []
        self.session.flush(calls, time.monotonic())
        self.session.fail(CLOSED)
        connection.close()
        if self._context is not None:
            self._context.term()

    def _schedule_flush(self) -> None:
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        calls, self._calls = self._calls, []
        self._unsent.extend(self.session.flush(calls, time.monotonic()))
        connection = self._connection
        if connection is None:
            self._unsent.clear()
            self.session.fail(CLOSED)
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
            self.session.receive(*message)
        for up in changes:
            if up:
                self.connections += 1
                # Its answer says that there is a server, and what it takes.
                connection.hello()
            else:
                self._unsent.clear()
                self.session.lost(time.monotonic())
                self._set_timer()
                self._unwatch(connection)
                if connection.refusal is None:
                    self._reset(connection)
                else:
                    self.session.refuse(connection.refusal)
                    self._resetting = True
                    self._loop.call_later(REFUSED_PAUSE_S, self._reset, connection)
                    return
                break
        self.session.region = connection.region
        if not connection.filenos():
            # It is to be connected anew as soon as there are descriptors.
            return
        self._watch_local(connection)
        if self._unsent or self.session.has_output:
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
        at = self.session.next_deadline()
        if at >= self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_later(max(at - time.monotonic(), 0.0), self._expire)

    def _expire(self) -> None:
        self._timer_at = float("inf")
        self.session.expire(time.monotonic())
        self._set_timer()
