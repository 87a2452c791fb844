"""What every gateway's process does: the supervisor starts it, with sockets to listen at or a port
to bind, and it ends with its supervisor, or when that has it drain.

    @contextlib.asynccontextmanager
    async def serve(process: GatewayProcess) -> AsyncIterator[None]: ...

    if __name__ == "__main__":
        sys.exit(run("metrics", serve, int(sys.argv[1]), int(sys.argv[2])))
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import resource
import socket
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

import msgpack

from batchyard.clients.errors import ResourceExhausted, Unavailable
from batchyard.clients.gateways import library_logs
from batchyard.wire import control, log
from batchyard.wire.control import GatewaySettings, Kind
from batchyard.wire.errors import ConfigurationError, from_wire
from batchyard.wire.link import Link, LinkClosed
from batchyard.wire.log import LogSettings

_NOBODY = "the server's supervisor does not answer"
# Of the models that are to be served: the supervisor, which reads them, has others to look after.
_MODELS_NBYTES_MAX = 16 << 20


async def _no_reload(_: list[dict[str, Any]]) -> None:
    raise Unavailable(_NOBODY)


@dataclass(slots=True)
class GatewayProcess:
    """What a gateway has been given. ``sockets`` are bound, listen, and belong to the process."""

    settings: GatewaySettings
    sockets: list[socket.socket] = field(default_factory=list)
    ask_for_reload: Callable[[list[dict[str, Any]]], Awaitable[None]] = _no_reload

    async def reload(self, models: list[dict[str, Any]]) -> None:
        """Has the server serve these tables of ``[[models]]``, and none else, from now on.

        Returns when each is served. Raises BatchyardError when one cannot be: what was served of it
        before still is then.
        """
        await self.ask_for_reload(models)


# Serves for as long as the context is open. Its exit stops listening, and comes back when all that
# was asked before has been answered; what comes meanwhile by open connections is UNAVAILABLE.
Serve = Callable[[GatewayProcess], AbstractAsyncContextManager[None]]


def run(
    name: str, serve: Serve, control_fd: int, parent_pid: int, *, ends_at_once: bool = False
) -> int:
    """Serves until the supervisor is gone or has had enough; the exit code.

    ``ends_at_once``: what ``serve`` leaves when it comes back, as tasks, ends with the process.
    """
    control.die_with_parent(parent_pid)
    control.leave_signals_to_parent()
    log.configure(name)
    library_logs.to_events()
    # Each connection takes a descriptor.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    supervisor = Link.from_fd(control_fd)
    try:
        body, fds = supervisor.receive()
    except LinkClosed:
        return control.EXIT_FAILURE
    settings = GatewaySettings.from_wire(body)
    sockets = [socket.socket(fileno=fd) for fd in fds]

    async def main() -> int:
        code = await _serve(name, serve, settings, sockets, _Supervisor(name, supervisor))
        if ends_at_once:
            os._exit(code)
        return code

    return asyncio.run(main())


async def _serve(
    name: str,
    serve: Serve,
    settings: GatewaySettings,
    sockets: list[socket.socket],
    supervisor: _Supervisor,
) -> int:
    supervisor.listen()
    async with contextlib.AsyncExitStack() as served:
        process = GatewayProcess(settings, sockets, supervisor.reload)
        supervisor.starting = asyncio.current_task()
        try:
            await served.enter_async_context(serve(process))
        except asyncio.CancelledError:
            # It is to end before it got to serve.
            return control.EXIT_OK
        except Exception as error:
            is_refused = isinstance(error, ConfigurationError)
            code = control.EXIT_CONFIGURATION if is_refused else control.EXIT_FAILURE
            reason = str(error) if is_refused else f"{type(error).__name__}: {error}"
            supervisor.tell([Kind.FAILED, code, f"{name}: {reason}"])
            return code
        finally:
            supervisor.starting = None
        supervisor.tell([Kind.ANSWERING])
        await supervisor.is_over.wait()
    return control.EXIT_OK


class _Supervisor:
    """The other end of the link, in the gateway's event loop."""

    def __init__(self, name: str, link: Link) -> None:
        self.is_over = asyncio.Event()
        # Who is to be stopped when it is over before it began.
        self.starting: asyncio.Task[Any] | None = None
        self._name = name
        self._link = link
        self._ids = itertools.count()
        self._reloads: dict[int, asyncio.Future[None]] = {}

    def listen(self) -> None:
        """From now on packets are heard; called in the event loop."""
        self._link.set_blocking(False)
        asyncio.get_running_loop().add_reader(self._link.fileno(), self._heard)

    def tell(self, packet: list[Any]) -> bool:
        """Whether it was sent."""
        try:
            self._link.send(packet)
        except (LinkClosed, BlockingIOError):
            return False
        return True

    async def reload(self, models: list[dict[str, Any]]) -> None:
        """See ``GatewayProcess``."""
        if len(msgpack.packb(models)) > _MODELS_NBYTES_MAX:
            most = _MODELS_NBYTES_MAX >> 20
            raise ResourceExhausted(f"{len(models)} models take more than {most} MiB to name")
        id = next(self._ids)
        answer = self._reloads[id] = asyncio.get_running_loop().create_future()
        try:
            if not self.tell([Kind.RELOAD, id, models]):
                raise Unavailable(_NOBODY)
            await answer
        finally:
            del self._reloads[id]

    def _heard(self) -> None:
        try:
            packet, _ = self._link.receive()
        except BlockingIOError:
            return
        except LinkClosed:
            asyncio.get_running_loop().remove_reader(self._link.fileno())
            for answer in self._reloads.values():
                _refuse(answer, Unavailable(_NOBODY))
            self._end()
            return
        if packet[0] == Kind.LOG:
            log.configure(self._name, LogSettings(*packet[1:]))
        elif packet[0] == Kind.DRAIN:
            self._end()
        elif packet[0] == Kind.RELOADED:
            self._reloaded(*packet[1:])

    def _end(self) -> None:
        self.is_over.set()
        if self.starting is not None:
            self.starting.cancel()

    def _reloaded(self, id: int, number: int, message: str) -> None:
        # Whoever asked may be gone.
        answer = self._reloads.get(id)
        if answer is None:
            return
        if number:
            _refuse(answer, from_wire(number, message))
        elif not answer.done():
            answer.set_result(None)


def _refuse(answer: asyncio.Future[None], error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)
