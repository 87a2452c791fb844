"""A process waits before its end until what it has written is received."""

from __future__ import annotations

import asyncio
import socket

from batchyard.clients.gateways.grpc.sockets import sent

TIMEOUT_S = 20.0


def test_what_nobody_has_read_yet_is_waited_for() -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            await sent(TIMEOUT_S)
            ours.send(b"an answer")
            waiting = asyncio.create_task(sent(TIMEOUT_S))
            await sent(0.05)
            assert not waiting.done()
            theirs.recv(100)
            await waiting

    asyncio.run(main())


def test_a_connection_that_ends_is_not_waited_for() -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        with ours:
            ours.send(b"an answer")
            waiting = asyncio.create_task(sent(TIMEOUT_S))
            await asyncio.sleep(0)
            theirs.close()
            await waiting

    asyncio.run(main())
