"""What HTTP costs a server that answers a constant: aiohttp's low-level server, and llhttp in a
protocol of asyncio's.

Each server is a process; clients ask over kept connections, one request after the other, both
servers in turn. The servers' processor time is as the kernel counts it.

Needs batchyard[server]. Run: python docs/decisions/measure_http.py
"""

from __future__ import annotations

import asyncio
import multiprocessing
import socket
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import httptools
from aiohttp import web

SECONDS = 2.0
ROUNDS = 2
ANSWER = b'{\n    "predictions": [2.5\n    ]\n}'
BODY = b'{"instances": [1.0]}'
REQUEST = (
    b"POST /v1/models/m:predict HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: measure\r\n"
    b"Accept: */*\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(BODY)
) + BODY


async def serve_aiohttp(sock: socket.socket) -> None:
    async def answer(request: web.BaseRequest) -> web.Response:
        await request.read()
        return web.Response(body=ANSWER, content_type="application/json")

    runner = web.ServerRunner(web.Server(answer, access_log=None))
    await runner.setup()
    await web.SockSite(runner, sock).start()
    await asyncio.Event().wait()


class Bare(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)
        self.headers: dict[bytes, bytes] = {}

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.lower()] = value

    def on_body(self, body: bytes) -> None:
        self.body = body

    def on_message_complete(self) -> None:
        self.headers = {}
        self.task = asyncio.get_running_loop().create_task(self.answer())

    async def answer(self) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        assert isinstance(self.transport, asyncio.Transport)
        self.transport.write(head % len(ANSWER) + ANSWER)


async def serve_llhttp(sock: socket.socket) -> None:
    await asyncio.get_running_loop().create_server(Bare, sock=sock)
    await asyncio.Event().wait()


SERVERS = {"aiohttp": serve_aiohttp, "llhttp": serve_llhttp}


def run(name: str, sock: socket.socket) -> None:
    asyncio.run(SERVERS[name](sock))


async def ask(port: int, until: float) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answers = 0
    while time.monotonic() < until:
        writer.write(REQUEST)
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(len(ANSWER))
        answers += 1
    writer.close()
    return answers


async def load(port: int, connections: int) -> int:
    until = time.monotonic() + SECONDS
    return sum(await asyncio.gather(*(ask(port, until) for _ in range(connections))))


def cpu_ns(process: BaseProcess) -> int:
    return int(Path(f"/proc/{process.pid}/schedstat").read_text().split()[0])


def main() -> None:
    context = multiprocessing.get_context("spawn")
    servers = {}
    for name in SERVERS:
        sock = socket.create_server(("127.0.0.1", 0), backlog=128)
        process = context.Process(target=run, args=(name, sock), daemon=True)
        process.start()
        servers[name] = process, sock.getsockname()[1]
    for connections in (1, 8, 64):
        for _ in range(ROUNDS):
            for name, (process, port) in servers.items():
                before = cpu_ns(process)
                answers = asyncio.run(load(port, connections))
                cost_us = (cpu_ns(process) - before) / answers / 1e3
                print(f"{name:8} {connections:3} connections {cost_us:6.1f} us a request")
    for process, _ in servers.values():
        process.kill()


if __name__ == "__main__":
    main()
