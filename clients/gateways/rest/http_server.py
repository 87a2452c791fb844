"""The HTTP connections of a gateway: how many, how slow they may be, how they end."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from batchyard.clients.gateways.rest.body_memory import BodyMemory
from batchyard.clients.gateways.rest.http_connection import (
    BODY,
    HEAD,
    IDLE,
    LINGERING,
    HttpConnection,
)
from batchyard.clients.gateways.rest.http_messages import Heads, HttpRequest, HttpResponse
from batchyard.wire import log

# Connections at once, if there are descriptors for so many: beyond, the one goes that has been idle
# for longest. Each takes some 10 KiB.
_CONNECTIONS_MAX = 4096
_OTHER_DESCRIPTORS = 64
_LOOK_S = 1.0
# A head comes in one piece, or somebody holds it back.
_HEAD_S = 10.0
# What a client must send, or read, in each such time.
_PROGRESS_S = 10.0
_PROGRESS_NBYTES = 10 * 1024
# Longer than clients keep connections in their pools.
_IDLE_S = 600.0
_LINGER_S = 2.0
# How long idle connections stay open when all ends.
_GOODBYE_S = 0.5
# Between tries when there are no descriptors.
_PAUSE_S = 0.1

Answer = Callable[[HttpRequest], Awaitable[HttpResponse]]
MakeError = Callable[[int, str], HttpResponse]


class HttpServer:
    """Answers requests by ``answer``, which never raises. Used by one event loop."""

    def __init__(
        self,
        answer: Answer,
        error: MakeError,
        memory: BodyMemory,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        """``error`` makes the answer to what is no request; bodies are held in ``memory``;
        ``headers`` are in all answers."""
        self._answer = answer
        self.error = error
        self.memory = memory
        self.heads = Heads(headers)
        self.loop = asyncio.get_running_loop()
        # The time when it looked last: asking the clock for each request costs more than it tells.
        self.now = time.monotonic()
        self._connections: dict[HttpConnection, None] = {}
        self._is_draining = False
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._connections_max = max(16, min(_CONNECTIONS_MAX, limit - _OTHER_DESCRIPTORS))
        self._accepted: set[asyncio.Task[object]] = set()

    @contextlib.asynccontextmanager
    async def listening(self, sock: socket.socket) -> AsyncIterator[None]:
        """Serves what comes to ``sock``, which listens, until the context is left: then requests in
        flight are answered, and it is closed, with all connections."""
        sock.setblocking(False)
        self._start_accepting(sock)
        guard = self.loop.create_task(self._guard())
        try:
            yield
            self._stop_accepting(sock)
            await self._finish()
        finally:
            if sock.fileno() >= 0:
                self._stop_accepting(sock)
            guard.cancel()
            for connection in list(self._connections):
                connection.close()
            # Their transports close in the loop's next turn.
            await asyncio.sleep(0)

    # Of connections

    async def respond(self, request: HttpRequest) -> HttpResponse:
        """The answer to a request."""
        if self._is_draining:
            response = self.error(503, "the server is shutting down")
        else:
            response = await self._answer(request)
        response.closes |= self._is_draining
        return response

    def joined(self, connection: HttpConnection) -> None:
        """A connection was made."""
        self._connections[connection] = None
        if len(self._connections) > self._connections_max:
            self._make_room(connection)

    def left(self, connection: HttpConnection) -> None:
        """A connection is gone."""
        self._connections.pop(connection, None)

    # Its own

    def _start_accepting(self, sock: socket.socket) -> None:
        self.loop.add_reader(sock.fileno(), self._accept, sock)

    def _stop_accepting(self, sock: socket.socket) -> None:
        """Takes the connections that are there already: without anyone who has the socket they
        would be reset."""
        self._is_draining = True
        self.loop.remove_reader(sock.fileno())
        while self._accept(sock):
            pass
        self.loop.remove_reader(sock.fileno())
        sock.close()

    def _accept(self, sock: socket.socket) -> bool:
        """Whether there was a connection, which is taken."""
        # One at a time, so that processes that share the socket share connections.
        try:
            accepted, _ = sock.accept()
        except (BlockingIOError, InterruptedError):
            return False
        except ConnectionAbortedError:
            return True
        except OSError as error:
            # No descriptors, or no memory: the socket stays readable, and asking would not end.
            log.limited("error", "gateway_erred", reason=f"a connection is not taken: {error}")
            self.loop.remove_reader(sock.fileno())
            self.loop.call_later(_PAUSE_S, self._accept_again, sock)
            return False
        accepted.setblocking(False)
        making = self.loop.connect_accepted_socket(lambda: HttpConnection(self), accepted)
        task: asyncio.Task[object] = self.loop.create_task(making)
        self._accepted.add(task)
        task.add_done_callback(self._accepted.discard)
        return True

    def _accept_again(self, sock: socket.socket) -> None:
        if not self._is_draining:
            self._start_accepting(sock)

    def _make_room(self, newcomer: HttpConnection) -> None:
        others = [c for c in self._connections if c is not newcomer and not c.is_busy]
        # Those that have said nothing for longest, or say it slowly; if all bring bodies, the one
        # that has for longest, or a few strangers could keep everybody out.
        waiting = [c for c in others if c.phase != BODY]
        longest = min(waiting or others or [newcomer], key=lambda connection: connection.since)
        longest.abort()
        log.limited("warning", "connections_ended", number=1, reason="too many")

    async def _finish(self) -> None:
        # A client may be about to ask by a connection that it takes for open: it is told, once it
        # did. Most have been told by then, by the answer before.
        idle_until = self.loop.time() + _GOODBYE_S
        while self._accepted or self._connections:
            if self.loop.time() > idle_until:
                for connection in [*self._connections]:
                    if connection.phase == IDLE and not connection.is_busy:
                        # It is gone when the client has all of its answer.
                        connection.close()
            await asyncio.sleep(0.01)

    async def _guard(self) -> None:
        """Ends connections that hold others up."""
        looked_at = self.now
        while True:
            await asyncio.sleep(_LOOK_S)
            self.now = time.monotonic()
            is_due = self.now >= looked_at + _PROGRESS_S
            if is_due:
                looked_at = self.now
            ended = sum(self._look_at(connection, is_due) for connection in [*self._connections])
            if ended:
                log.limited("warning", "connections_ended", number=ended, reason="too slow")

    def _look_at(self, connection: HttpConnection, is_due: bool) -> bool:
        """Whether a connection was ended because it is too slow."""
        age_s = self.now - connection.since
        if connection.is_busy or connection.unsent_nbytes:
            return is_due and not self._takes(connection)
        if connection.phase == IDLE:
            if age_s > _IDLE_S:
                connection.close()
        elif connection.phase == HEAD:
            if age_s > _HEAD_S:
                connection.refuse(408, f"a request's head must come within {_HEAD_S:.0f} s")
                return True
        elif connection.phase == LINGERING:
            if age_s > _LINGER_S:
                connection.abort()
        elif is_due and age_s > _PROGRESS_S:
            moved, connection.moved_nbytes = connection.moved_nbytes, 0
            if moved < _PROGRESS_NBYTES:
                message = f"a body must bring {_PROGRESS_NBYTES} bytes in {_PROGRESS_S:.0f} s"
                connection.refuse(408, message)
                return True
        return False

    def _takes(self, connection: HttpConnection) -> bool:
        """Whether a client reads its answer; one that does not is gone."""
        unsent = connection.unsent_nbytes
        taken, before = connection.written_nbytes - unsent, connection.taken_before
        connection.taken_before = taken
        if not unsent or taken >= before + _PROGRESS_NBYTES:
            return True
        connection.abort()
        return False
