"""The metrics gateway's HTTP: what it answers, and what callers cannot do to it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support.metrics_sample import make_metrics
from support.waiting import DEADLINE_S

from batchyard.clients.gateways import device_source, http, page_files
from batchyard.clients.gateways.device_source import DeviceSource
from batchyard.clients.gateways.devices import Devices
from batchyard.clients.gateways.http import serving
from batchyard.clients.gateways.metrics import MetricsGateway
from batchyard.clients.gateways.source import BrokerSource


class Source(BrokerSource):
    """A broker that answers as it is told to."""

    def __init__(self) -> None:
        super().__init__("ipc:///nowhere")
        self.answer: dict[str, Any] | None = make_metrics()
        self.questions = 0
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def _ask(self) -> dict[str, Any] | None:
        self.questions += 1
        await self.may_answer.wait()
        return self.answer


@contextlib.asynccontextmanager
async def gateway(
    source: Source, devices: Devices | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[int]:
    """The port of one."""
    sock = socket.create_server((host, 0))
    shared = DeviceSource(devices or Devices([]))
    async with serving(MetricsGateway(source, shared).application(), sock):
        yield sock.getsockname()[1]
    shared.close()


async def exchange(port: int, request: bytes) -> bytes:
    """All that comes back, until the connection ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    try:
        async with asyncio.timeout(DEADLINE_S):
            return await reader.read()
    finally:
        writer.close()


async def ask(
    port: int, path: str, host: str = "localhost", method: str = "GET"
) -> tuple[int, str, str]:
    """The status, the headers and the body."""
    request = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"
    answer = await exchange(port, request.encode())
    head, _, body = answer.decode().partition("\r\n\r\n")
    return int(head.split()[1]), head.lower(), body


def test_every_answer_keeps_browsers_from_mischief() -> None:
    async def main() -> None:
        async with gateway(Source()) as port:
            for path in ("/", "/metrics", "/healthz", "/readyz", "/stats.json", "/nothing"):
                _, headers, _ = await ask(port, path)
                assert "content-security-policy: default-src 'self'" in headers
                assert "x-content-type-options: nosniff" in headers
                assert "aiohttp" not in headers
                assert "access-control" not in headers

    asyncio.run(main())


def test_only_reading_is_possible() -> None:
    async def main() -> None:
        async with gateway(Source()) as port:
            for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
                status, _, body = await ask(port, "/metrics", method=method)
                assert (status, body) == (405, "405: Method Not Allowed\n")
            assert (await ask(port, "/nothing"))[2] == "404: Not Found\n"
            status, headers, body = await ask(port, "/metrics", method="HEAD")
            assert (status, body) == (200, "")
            assert "content-type: text/plain; version=" in headers

    asyncio.run(main())


def test_all_who_look_at_once_share_one_answer() -> None:
    async def main() -> None:
        source = Source()
        source.may_answer.clear()
        looks = [asyncio.create_task(source.read()) for _ in range(10)]
        while not source.questions:
            await asyncio.sleep(0)
        # One goes away again, and takes nobody's answer along.
        looks.pop().cancel()
        source.may_answer.set()
        assert await asyncio.gather(*looks) == [source.answer] * 9
        assert source.questions == 1
        await source.read()
        assert source.questions == 2

    asyncio.run(main())


@pytest.mark.parametrize(
    "path",
    [
        "/static/../metrics.py",
        "/static/%2e%2e/metrics.py",
        "/static/%2e%2e%2fmetrics.py",
        "/static//etc/passwd",
        "/static/..%5cmetrics.py",
        "/static/page.txt",
        "/static/.hidden.js",
        "/static/",
        "//etc/passwd",
        "/page/index.html",
    ],
)
def test_nothing_but_the_page_can_be_fetched(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page"
    page.mkdir()
    (tmp_path / "metrics.py").write_text("secret")
    for name in ("page.txt", ".hidden.js", "page.js"):
        (page / name).write_text("secret" if name != "page.js" else "let x")
    (page / "index.html").write_text("<title>it</title>")
    monkeypatch.setattr(page_files.resources, "files", lambda _: tmp_path)

    async def main() -> None:
        async with gateway(Source()) as port:
            status, _, body = await ask(port, path)
            assert status == 404
            assert "secret" not in body
            status, headers, body = await ask(port, "/static/page.js")
            assert (status, body) == (200, "let x")
            assert "content-type: text/javascript; charset=utf-8" in headers
            status, headers, body = await ask(port, "/")
            assert (status, body) == (200, "<title>it</title>")
            assert "content-type: text/html; charset=utf-8" in headers

    asyncio.run(main())


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % i for i in range(100_000)) + b"\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 200,
        b"GET / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
    ids=["line", "header", "headers", "tls", "smuggling"],
)
def test_what_is_no_decent_request_gets_none_but_an_error(request_: bytes) -> None:
    async def main() -> None:
        async with gateway(Source()) as port:
            with contextlib.suppress(ConnectionError):
                answer = await exchange(port, request_)
                assert not answer or answer.split()[1] in (b"400", b"431"), answer[:200]
            assert (await ask(port, "/healthz"))[0] == 200

    asyncio.run(main())


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("127.0.0.1:9090", 200),
        ("[::1]:9090", 200),
        ("10.0.0.7", 200),
        ("LocalHost:9090", 200),
        ("metrics.localhost", 200),
        ("", 421),
        ("evil.example", 421),
        ("evil.example:9090", 421),
        ("127.0.0.1.evil.example", 421),
        ("notlocalhost", 421),
        ("[evil.example]", 421),
    ],
)
def test_no_web_site_reads_it_by_a_name_of_its_own(host: str, status: int) -> None:
    async def main() -> None:
        async with gateway(Source()) as port:
            for path in ("/stats.json", "/", "/nothing"):
                told = (await ask(port, path, host))[0]
                assert told == (status if status == 421 or path != "/nothing" else 404)

    asyncio.run(main())


def test_who_says_no_name_is_no_browser() -> None:
    async def main() -> None:
        async with gateway(Source()) as port:
            assert b" 200 " in await exchange(port, b"GET /healthz HTTP/1.0\r\n\r\n")

    asyncio.run(main())


def test_in_a_network_names_are_its_own_affair() -> None:
    async def main() -> None:
        async with gateway(Source(), host="0.0.0.0") as port:
            assert (await ask(port, "/healthz", "metrics.example:9090"))[0] == 200

    asyncio.run(main())


def test_headers_without_end_are_refused_before_they_take_memory() -> None:
    """Older aiohttp reads them for as long as they come: the process grew by 1 GiB in 3 s."""

    async def main() -> None:
        async with gateway(Source()) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % i for i in range(1000)))
            async with asyncio.timeout(DEADLINE_S):
                assert (await reader.readline()).split()[1] == b"400"
            writer.close()

    asyncio.run(main())


def test_those_who_send_or_read_slowly_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_CONNECTION_S", 0.1)
    monkeypatch.setattr(http, "_LOOK_S", 0.02)

    async def main() -> None:
        async with gateway(Source()) as port:
            silent = exchange(port, b"")
            halting = exchange(port, b"GET /metrics HTTP/1.1\r\nX-Slow: ")
            slow = asyncio.gather(silent, halting, return_exceptions=True)
            while not slow.done():
                assert (await ask(port, "/healthz"))[0] == 200
            assert not any(isinstance(result, TimeoutError) for result in await slow)

    asyncio.run(main())


def test_too_many_at_once_do_not_keep_others_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_CONNECTIONS_MAX", 5)
    monkeypatch.setattr(http, "_LOOK_S", 0.02)

    async def main() -> None:
        async with gateway(Source()) as port:
            ends = [asyncio.create_task(exchange(port, b"GET ")) for _ in range(20)]
            ended, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            while len(ended) < 15:
                ended, _ = await asyncio.wait(ends, timeout=0.02)
            assert (await ask(port, "/healthz"))[0] == 200
            for end in ends:
                end.cancel()
            await asyncio.gather(*ends, return_exceptions=True)

    asyncio.run(main())


def test_a_broker_that_does_not_answer() -> None:
    async def main() -> None:
        source = Source()
        source.answer = None
        async with gateway(source) as port:
            assert (await ask(port, "/healthz"))[0] == 503
            status, _, body = await ask(port, "/metrics")
            assert status == 200
            assert "batchyard_up 0.0" in body

    asyncio.run(main())


def test_a_driver_that_hangs_hides_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_source, "ANSWER_TIMEOUT_S", 0.01)
    may_answer = threading.Event()
    devices = Devices([])
    monkeypatch.setattr(devices, "read", lambda: [] if may_answer.wait(DEADLINE_S) else None)

    async def main() -> None:
        async with gateway(Source(), devices) as port:
            assert "batchyard_up 1.0" in (await ask(port, "/metrics"))[2]
            status, _, body = await ask(port, "/stats.json")
            assert (status, json.loads(body)["devices"]) == (200, [])
            assert not may_answer.is_set()

    try:
        asyncio.run(main())
    finally:
        may_answer.set()
