"""A gateway for tests of its processes: ``python -m support.stub_gateway CONTROL_FD PARENT_PID``.

It listens as it is given to, by a socket or a port of its own. A connection sends one line: ``pid``
is answered with this process's id, ``hold`` when another connection has said ``release``, and a
JSON list of models when they are served, or with the error; ``too much`` stands for a long list. It
answers all that it has read before it ends.

``options`` may have it fail: ``{"fails": "exit"}``, ``"refuses"``, ``"raises"``,
``"hangs"``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
from collections.abc import AsyncIterator

from batchyard.clients.errors import BatchyardError
from batchyard.clients.gateways.child import GatewayProcess, run
from batchyard.wire.errors import ConfigurationError


@contextlib.asynccontextmanager
async def serve(process: GatewayProcess) -> AsyncIterator[None]:
    """Serves while the context is open."""
    match process.settings.options.get("fails"):
        case "exit":
            os._exit(7)
        case "refuses":
            raise ConfigurationError("its file is wrong")
        case "raises":
            raise ValueError("odd")
        case "hangs":
            await asyncio.Event().wait()
    held: list[asyncio.Event] = []
    under_way: set[asyncio.Task[None]] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        line = (await reader.readline()).decode().strip()
        if line:
            under_way.add(task)
            writer.write(f"{await _answer(process, line, held)}\n".encode())
            await writer.drain()
        writer.close()
        under_way.discard(task)

    server = await asyncio.start_server(answer, sock=_listening(process))
    yield
    server.close()
    while under_way:
        await asyncio.wait(under_way)


async def _answer(process: GatewayProcess, line: str, held: list[asyncio.Event]) -> str:
    if line == "too much":
        line = json.dumps([{"name": "m" * (17 << 20)}])
    if line == "hold":
        held.append(asyncio.Event())
        await held[-1].wait()
    elif line == "release":
        for event in held:
            event.set()
        return str(len(held))
    elif line.startswith("["):
        models = json.loads(line)
        try:
            await process.reload(models)
        except BatchyardError as error:
            return str(error)
        return "OK"
    return str(os.getpid())


def _listening(process: GatewayProcess) -> socket.socket:
    if process.sockets:
        return process.sockets[0]
    host, _, port = process.settings.address.rpartition(":")
    return socket.create_server((host, int(port)), reuse_port=True)


if __name__ == "__main__":
    sys.exit(run("stub", serve, int(sys.argv[1]), int(sys.argv[2])))
