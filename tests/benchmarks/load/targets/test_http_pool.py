"""Connections that are kept, counted, shared and lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from batchyard.benchmarks.load.targets.http_pool import HttpPool
from batchyard.wire.errors import DeadlineExceeded, Unavailable

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
REQUEST = b"GET / HTTP/1.1\r\n\r\n"


class Server:
    """Answers each request; counts connections, and how many are answered at once."""

    def __init__(self, requests_each: int = 1_000_000, answer: bytes = OK) -> None:
        self.connections = 0
        self.requests = 0
        self.held = asyncio.Event()
        self.held.set()
        self._requests_each = requests_each
        self._answer = answer

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            for _ in range(self._requests_each):
                await reader.readuntil(b"\r\n\r\n")
                self.requests += 1
                await self.held.wait()
                writer.write(self._answer)
        except (asyncio.IncompleteReadError, ConnectionResetError):
            pass
        finally:
            writer.close()


def talk(
    server: Callable[[], Server], say: Callable[[HttpPool, Server], Awaitable[Any]], most: int = 100
) -> Any:
    """What comes of a conversation with a server in the same loop."""

    async def whole() -> Any:
        serve = server()
        listener = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with listener:
            pool = HttpPool("127.0.0.1", listener.sockets[0].getsockname()[1], most)
            try:
                await pool.connect()
                return await say(pool, serve)
            finally:
                serve.held.set()
                await pool.close()

    return asyncio.run(whole())


def test_no_more_connections_than_allowed() -> None:
    async def say(pool: HttpPool, server: Server) -> None:
        answers = await asyncio.gather(*(pool.call(REQUEST, 10.0) for _ in range(50)))
        assert [answer.body for answer in answers] == [b"ok"] * 50
        assert server.connections == 3

    talk(Server, say, most=3)


def test_who_waits_for_a_connection_has_a_deadline_too() -> None:
    async def say(pool: HttpPool, server: Server) -> None:
        server.held.clear()
        first = asyncio.create_task(pool.call(REQUEST, None))
        await asyncio.sleep(0)
        with pytest.raises(DeadlineExceeded):
            await pool.call(REQUEST, 0.02)
        server.held.set()
        assert (await first).status == 200
        assert (await pool.call(REQUEST, 10.0)).status == 200
        assert server.requests == 2

    talk(Server, say, most=1)


def test_room_that_a_deadline_makes_is_used() -> None:
    async def say(pool: HttpPool, server: Server) -> None:
        server.held.clear()
        first = asyncio.create_task(pool.call(REQUEST, 0.02))
        await asyncio.sleep(0)
        second = asyncio.create_task(pool.call(REQUEST, 10.0))
        with pytest.raises(DeadlineExceeded):
            await first
        server.held.set()
        assert (await second).status == 200
        assert server.connections == 2

    talk(Server, say, most=1)


def test_a_connection_closed_while_idle_is_no_error() -> None:
    async def say(pool: HttpPool, server: Server) -> None:
        for _ in range(6):
            assert (await pool.call(REQUEST, 10.0)).status == 200
        assert server.requests == 6

    talk(lambda: Server(requests_each=2), say)


@pytest.mark.parametrize(
    "server", [lambda: Server(requests_each=0), lambda: Server(answer=b"SMTP\r\n\r\n")]
)
def test_what_does_not_answer_is_unavailable(server: Callable[[], Server]) -> None:
    async def say(pool: HttpPool, server: Server) -> None:
        for _ in range(2):
            with pytest.raises(Unavailable):
                await pool.call(REQUEST, 10.0)

    talk(server, say)


def test_who_waits_for_a_connection_that_never_comes_is_told() -> None:
    async def whole() -> list[Any]:
        gone = await asyncio.start_server(Server(), "127.0.0.1", 0)
        port = gone.sockets[0].getsockname()[1]
        gone.close()
        await gone.wait_closed()
        pool = HttpPool("127.0.0.1", port, most=1)
        async with asyncio.timeout(20.0):
            return await asyncio.gather(
                *(pool.call(REQUEST, None) for _ in range(5)), return_exceptions=True
            )

    assert [type(error) for error in asyncio.run(whole())] == [Unavailable] * 5
