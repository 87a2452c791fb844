"""One HTTP/1.1 connection: requests come in, one after the other is answered.

What HTTP is, is read by llhttp (Node's parser, in httptools). aiohttp's own server would cost as
much as all the rest of the gateway: docs/decisions/0012-the-rest-gateway-speaks-http-by-llhttp.md.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

import httptools

from batchyard.clients.gateways.rest.http_messages import HttpRequest, HttpResponse
from batchyard.wire import log

if TYPE_CHECKING:
    from batchyard.clients.gateways.rest.http_server import HttpServer

# Of a request's first line; of it and all headers.
TARGET_MAX = 8 * 1024
HEAD_MAX = 32 * 1024
HEADERS_MAX = 100
# Requests that were sent ahead of their answers, and bytes of them, before no more are read.
_AHEAD_MAX = 64
_AHEAD_NBYTES_MAX = 1024 * 1024
# Bytes of a chunked body that are none of it, for each that is: ``1\r\nx\r\n`` has 5.
_OVERHEAD_MAX = 32
_METHODS = ("GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH")
_JOINED_NBYTES_MAX = 64 * 1024
# Pieces of a body that are smaller are put together: kept as they come they take many times their
# size, of which nothing is counted.
_PIECE_NBYTES_MIN = 1024
# What is parsed at once of what came: it may be thousands of requests.
_PARSED_NBYTES = 16 * 1024

# Between requests; in a request's head; in its body; answered for good, what still comes is read
# and dropped, so that the answer is not lost in a reset.
IDLE, HEAD, BODY, LINGERING = range(4)


class HttpConnection(asyncio.Protocol):
    """Made by ``HttpServer``, which knows all of them and ends those that take too long."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._memory = server.memory
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None
        self._ahead: deque[HttpRequest] = deque()
        self._ahead_nbytes = 0
        # What came behind them, and is not parsed yet.
        self._unparsed = b""
        self._is_reading = True
        self._writable: asyncio.Future[None] | None = None
        self._is_choked = False
        self._owes_continue = False
        # Of the request that is coming in.
        self._request = HttpRequest()
        self._target = b""
        self._headers = 0
        self._chunks: list[bytes | bytearray] = []
        self._body_nbytes = 0
        self._message_nbytes = 0
        self._refusal: HttpResponse | None = None
        self.phase = IDLE
        self.since = server.now
        # For ``HttpServer``: bytes that came, and that were written, and what had been taken of
        # these when it looked last.
        self.moved_nbytes = 0
        self.written_nbytes = 0
        self.taken_before = 0

    @property
    def is_busy(self) -> bool:
        """Whether a request is being answered."""
        return self._task is not None

    @property
    def unsent_nbytes(self) -> int:
        """Bytes of answers that the client has not taken."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def abort(self) -> None:
        """Ends it at once."""
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """Ends it when what was written has left."""
        if self._transport is not None:
            self._transport.close()

    def refuse(self, status: int, message: str) -> None:
        """Answers with an error, behind what is being answered, and ends."""
        if self._refusal is None:
            log.limited("debug", "http_refused", reason=message)
            self._refusal = self._server.error(status, message)
            self._refusal.closes = True
            if self.phase == IDLE:
                self.phase = HEAD
            if self._task is None:
                self._send_refusal()

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._server.joined(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if self._task is not None:
            # Nobody waits for it any more: the broker need not run it.
            self._task.cancel()
        self._drop_bodies()
        self._server.left(self)

    def data_received(self, data: bytes) -> None:
        self.moved_nbytes += len(data)
        if self.phase != LINGERING:
            self._parse(data)

    def pause_writing(self) -> None:
        self._is_choked = True

    def resume_writing(self) -> None:
        self._is_choked = False
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    def _parse(self, data: bytes) -> None:
        """Reads requests, until there are as many as may wait."""
        view, place = memoryview(data), 0
        while place < len(data) and self._refusal is None:
            if self._is_full():
                self._unparsed = data[place:]
                self._pause_reading()
                return
            place += self._feed(view[place : place + _PARSED_NBYTES])
            if self._refusal is None and self.phase in (HEAD, BODY):
                self._check_size()

    def _feed(self, piece: memoryview | bytes) -> int:
        """How many bytes of a piece were parsed."""
        self._message_nbytes += len(piece)
        try:
            self._parser.feed_data(piece)
        except httptools.HttpParserUpgrade as upgrade:
            # Nothing else is spoken here than what the request is in already. The parser took its
            # body for the other protocol's, so the head is read again, as of one that does not ask
            # for it.
            self._parser = httptools.HttpRequestParser(self)
            if self._refusal is None:
                self._message_nbytes = 0
                self._feed(self._request.head_without_upgrade())
            return int(upgrade.args[0])
        except httptools.HttpParserError as error:
            self.refuse(400, f"this is no HTTP/1.1: {error}")
        return len(piece)

    def _is_full(self) -> bool:
        return len(self._ahead) >= _AHEAD_MAX or self._ahead_nbytes > _AHEAD_NBYTES_MAX

    def _check_size(self) -> None:
        overhead = self._message_nbytes - self._body_nbytes
        if self.phase == HEAD and overhead > HEAD_MAX:
            self.refuse(431, f"a request's head may have {HEAD_MAX} bytes at most")
        elif overhead > 2 * HEAD_MAX + _OVERHEAD_MAX * self._body_nbytes:
            self.refuse(400, "a chunked body may not consist of nearly nothing but its frames")

    # What the parser calls

    def on_message_begin(self) -> None:
        if self._refusal is not None:
            return
        self._request = HttpRequest()
        self._target = b""
        self._headers = 0
        self.phase = HEAD
        self.since = self._server.now

    def on_url(self, part: bytes) -> None:
        if self._refusal is not None:
            return
        self._target += part
        if len(self._target) > TARGET_MAX:
            self.refuse(414, f"a request's target may have {TARGET_MAX} bytes at most")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.phase != HEAD or self._refusal is not None:
            # Behind the body; nobody asks for these.
            return
        self._headers += 1
        if self._headers > HEADERS_MAX:
            self.refuse(431, f"a request may have {HEADERS_MAX} headers at most")
            return
        headers = self._request.headers
        name = name.lower()
        known = headers.get(name)
        if known is not None and name == b"host":
            # A proxy in front may have taken the other.
            self.refuse(400, "a request has one header Host")
            return
        headers[name] = value if known is None else b"%b, %b" % (known, value)

    def on_headers_complete(self) -> None:
        if self._refusal is not None:
            return
        request = self._request
        request.method = self._parser.get_method().decode("ascii")
        request.target = self._target
        request.is_http_1_0 = self._parser.get_http_version() == "1.0"
        self.phase = BODY
        self.since = self._server.now
        self.moved_nbytes = 0
        headers = request.headers
        if request.method not in _METHODS:
            self.refuse(501, f"method {request.method} is not served")
            return
        encoding = headers.get(b"transfer-encoding")
        if encoding is not None and encoding.strip().lower() != b"chunked":
            # What is compressed for the way, too, would be taken for the body itself.
            self.refuse(501, "the only Transfer-Encoding that is served is chunked")
            return
        length = headers.get(b"content-length")
        if length is not None and int(length) > self._memory.max_body_nbytes:
            self._refuse_body()
            return
        expected = headers.get(b"expect")
        if expected is None or request.is_http_1_0:
            return
        if expected.lower() != b"100-continue":
            self.refuse(417, "only 100-continue can be expected")
        elif self._task is None and not self._ahead:
            self._write_continue()
        else:
            self._owes_continue = True

    def on_body(self, part: bytes) -> None:
        if self._refusal is not None:
            return
        self._body_nbytes += len(part)
        if self._body_nbytes > self._memory.max_body_nbytes:
            self._refuse_body()
        elif not self._memory.hold(len(part)):
            self._body_nbytes -= len(part)
            self.refuse(503, "bodies of other requests take all memory that is for them")
        else:
            self._keep(part)

    def on_message_complete(self) -> None:
        if self._refusal is not None or self._parser.should_upgrade():
            return
        request, chunks = self._request, self._chunks
        if chunks:
            # The first is kept as it came.
            request.body = bytes(chunks[0]) if len(chunks) == 1 else b"".join(chunks)
            self._chunks = []
        request.keeps_alive = self._parser.should_keep_alive()
        self.phase = IDLE
        self.since = self._server.now
        self._ahead_nbytes += self._body_nbytes
        # The next message's first bytes may have come with these.
        self._body_nbytes = self._message_nbytes = 0
        self._owes_continue = False
        self._ahead.append(request)
        if self._task is None:
            self._task = self._server.loop.create_task(self._answer())
        elif self._is_full():
            self._pause_reading()

    # Answers

    async def _answer(self) -> None:
        """Answers what has come, one after the other."""
        try:
            while self._ahead:
                request = self._ahead.popleft()
                response = await self._server.respond(request)
                self._memory.let_go(len(request.body))
                self._ahead_nbytes -= len(request.body)
                self._write(response, request)
                if response.closes or not request.keeps_alive:
                    self._end()
                    return
                if self._is_choked:
                    self._writable = self._server.loop.create_future()
                    await self._writable
                elif self._ahead:
                    # Others' turn: some answers are made without waiting for anything.
                    await asyncio.sleep(0)
        finally:
            self._task = None
        self.since = self._server.now
        if self._refusal is not None:
            self._send_refusal()
            return
        if self._owes_continue:
            self._owes_continue = False
            self._write_continue()
        self._read_on()

    def _read_on(self) -> None:
        """Reads more requests, now that there is room for them."""
        unparsed, self._unparsed = self._unparsed, b""
        if unparsed:
            self._parse(unparsed)
        if not self._unparsed and not self._is_reading and self._transport is not None:
            self._is_reading = True
            self._transport.resume_reading()

    def _write(self, response: HttpResponse, request: HttpRequest | None) -> None:
        transport = self._transport
        if transport is None:
            return
        head = self._server.heads.head(response, request)
        body = response.body
        self.written_nbytes += len(head) + len(body)
        if request is not None and request.method == "HEAD":
            transport.write(head)
        elif len(body) <= _JOINED_NBYTES_MAX:
            transport.write(head + body)
        else:
            transport.writelines([head, body])

    def _write_continue(self) -> None:
        if self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _refuse_body(self) -> None:
        most = self._memory.max_body_nbytes
        self.refuse(413, f"a body may have {most} bytes at most (max_body_mb under [rest])")

    def _send_refusal(self) -> None:
        assert self._refusal is not None
        self._write(self._refusal, None)
        self._end()

    def _end(self) -> None:
        """No more is answered. The client may still send: a reset would take the answer away."""
        self._drop_bodies()
        if self._transport is None:
            return
        was_idle = self.phase == IDLE
        self.phase = LINGERING
        self.since = self._server.now
        if was_idle or not self._transport.can_write_eof():
            self._transport.close()
            return
        self._transport.write_eof()
        if not self._is_reading:
            self._transport.resume_reading()

    def _keep(self, part: bytes) -> None:
        last = self._chunks[-1] if self._chunks else None
        if last is None or len(part) >= _PIECE_NBYTES_MIN:
            self._chunks.append(part)
        elif isinstance(last, bytearray):
            last += part
        else:
            self._chunks.append(bytearray(part))

    def _drop_bodies(self) -> None:
        self._memory.let_go(self._body_nbytes + self._ahead_nbytes)
        self._body_nbytes = self._ahead_nbytes = 0
        self._ahead.clear()
        self._chunks.clear()
        self._unparsed = b""

    def _pause_reading(self) -> None:
        if self._is_reading and self._transport is not None:
            self._is_reading = False
            self._transport.pause_reading()
