"""What every gateway's process does: the supervisor starts it with a socket to listen at, and it
ends with its supervisor.

    if __name__ == "__main__":
        sys.exit(run("metrics", serve, int(sys.argv[1]), int(sys.argv[2])))
"""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from batchyard.clients.gateways import library_logs
from batchyard.wire import control, log
from batchyard.wire.control import GatewaySettings, Kind
from batchyard.wire.link import Link, LinkClosed
from batchyard.wire.log import LogSettings

# Serves at the socket for as long as the context is open.
Serve = Callable[[GatewaySettings, socket.socket], AbstractAsyncContextManager[None]]


def run(name: str, serve: Serve, control_fd: int, parent_pid: int) -> int:
    """Serves until the supervisor is gone or has had enough; the exit code."""
    control.die_with_parent(parent_pid)
    control.leave_signals_to_parent()
    log.configure(name)
    library_logs.to_events()
    # Each connection takes a descriptor.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    supervisor = Link.from_fd(control_fd)
    try:
        body, (fd,) = supervisor.receive()
    except LinkClosed:
        return control.EXIT_FAILURE
    settings = GatewaySettings.from_wire(body)
    asyncio.run(_serve(name, serve, settings, socket.socket(fileno=fd), supervisor))
    return control.EXIT_OK


async def _serve(
    name: str, serve: Serve, settings: GatewaySettings, sock: socket.socket, supervisor: Link
) -> None:
    is_over = asyncio.Event()
    supervisor.set_blocking(False)

    def heard() -> None:
        try:
            packet, _ = supervisor.receive()
        except BlockingIOError:
            return
        except LinkClosed:
            asyncio.get_running_loop().remove_reader(supervisor.fileno())
            is_over.set()
            return
        if packet[0] == Kind.LOG:
            log.configure(name, LogSettings(*packet[1:]))

    asyncio.get_running_loop().add_reader(supervisor.fileno(), heard)
    async with serve(settings, sock):
        supervisor.send([Kind.ANSWERING])
        await is_over.wait()
