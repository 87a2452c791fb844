"""What aiohttp and asyncio log: one line an event, however much of it callers cause."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web

from batchyard.clients.gateways import library_logs
from batchyard.clients.gateways.http import serving
from batchyard.wire import log
from batchyard.wire.log import LogSettings
from batchyard.wire.log_limit import EventLimit

_NO_HTTP = (
    b"GET / HTTP/1.1\r\nHost: x\r\nHo\x1b[2Jst: x\r\n\r\n",
    b"GET /\x1b[31m\nlevel=error event=fake HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nContent-Length: \xff\x1b[31m\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 200,
)


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("batchyard", "aiohttp", "asyncio")]
    before = [(logger.handlers, logger.level, logger.propagate) for logger in loggers]
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(log, "_limit", EventLimit())
    yield
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers, logger.level, logger.propagate = handlers, level, propagate


async def _broken(_: web.Request) -> web.Response:
    raise ValueError("nobody\nexpected this")


async def _send(*requests: bytes) -> list[bytes]:
    """The first lines of the answers."""
    app = web.Application()
    app.router.add_get("/broken", _broken)
    sock = socket.create_server(("127.0.0.1", 0))
    answers = []
    async with serving(app, sock):
        for request in requests:
            reader, writer = await asyncio.open_connection(*sock.getsockname())
            writer.write(request)
            answers.append((await reader.read()).partition(b"\r\n")[0])
            writer.close()
    return answers


def _said(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_what_is_no_http_is_told_only_to_who_looks_for_a_fault(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log.configure("metrics", LogSettings("json", "info"))
    library_logs.to_events()
    assert all(b" 400 " in line for line in asyncio.run(_send(*_NO_HTTP)))
    assert _said(capsys) == []
    log.configure("metrics", LogSettings("json", "debug"))
    asyncio.run(_send(*_NO_HTTP * 25))
    lines = [line for line in _said(capsys) if line["event"] == "http_refused"]
    assert 10 <= len(lines) < 50, "ten at once, and one a second"
    assert {line["level"] for line in lines} == {"debug"}


def test_an_exception_that_nobody_expected_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("metrics", LogSettings("json", "info"))
    library_logs.to_events()
    assert b" 500 " in asyncio.run(_send(b"GET /broken HTTP/1.1\r\nHost: localhost\r\n\r\n"))[0]
    (line,) = _said(capsys)
    assert (line["event"], line["level"]) == ("gateway_erred", "error")
    assert line["reason"].endswith("ValueError: nobody\nexpected this")
    assert "_broken" in line["traceback"]


def test_so_is_what_the_event_loop_says(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("metrics", LogSettings("json", "info"))
    library_logs.to_events()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        context = {"message": "socket.accept() out of system resource", "socket": None}
        loop.call_exception_handler(context)
        loop.call_exception_handler({**context, "exception": OSError("no descriptor left")})

    asyncio.run(main())
    said = [line["reason"] for line in _said(capsys)]
    reason = "socket.accept() out of system resource"
    assert said == [reason, f"{reason}: OSError: no descriptor left"]
