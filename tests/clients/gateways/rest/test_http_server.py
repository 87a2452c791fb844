"""HTTP as it comes over sockets: kept connections, pipelines, bounds, malformed requests."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from support.http_raw import RawClient, StubHttp, stub_http
from support.waiting import wait_until

from batchyard.clients.gateways.rest import http_connection, http_server
from batchyard.clients.gateways.rest.http_connection import BODY
from batchyard.clients.gateways.rest.http_messages import HttpRequest, HttpResponse

MAX_BODY = 100_000
GET = b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n"


@dataclass
class Asked:
    """What came, and who waits."""

    requests: list[HttpRequest] = field(default_factory=list)
    cancelled: int = 0
    # For ``/slow``: closed until it is set.
    gate: threading.Event = field(default_factory=threading.Event)

    async def answer(self, request: HttpRequest) -> HttpResponse:
        """Tells what came; ``/slow`` waits, ``/large`` has a large body."""
        self.requests.append(request)
        if request.target == b"/slow":
            try:
                while not self.gate.is_set():
                    await asyncio.sleep(0.001)
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        body = bytes(8 << 20) if request.target == b"/large" else request.target + request.body
        return HttpResponse(body)


@pytest.fixture
def asked() -> Asked:
    return Asked()


@pytest.fixture
def stub(asked: Asked) -> Iterator[StubHttp]:
    with stub_http(asked.answer, MAX_BODY) as running:
        yield running
        asked.gate.set()


@pytest.fixture
def client(stub: StubHttp) -> Iterator[RawClient]:
    with RawClient(stub.port) as connected:
        yield connected


def test_a_connection_is_kept(client: RawClient) -> None:
    for i in range(2000):
        client.post(f"/{i}", b"body")
        status, headers, body = client.read()
        assert (status, body) == (200, b"/%dbody" % i)
        assert "connection" not in headers
    assert headers["content-type"] == "application/json"
    assert headers["date"].endswith(" GMT")
    assert headers["x-content-type-options"] == "nosniff"


def test_requests_may_be_sent_ahead_up_to_a_bound(
    stub: StubHttp, client: RawClient, asked: Asked
) -> None:
    # More than is read at once.
    number = 12_000
    sent = b"GET /slow HTTP/1.1\r\n\r\n" + b"".join(GET % i for i in range(number))
    sending = threading.Thread(target=client.send, args=[sent])
    sending.start()
    assert stub.server is not None
    (connection,) = wait_until(lambda: [*stub.server._connections], "the connection")
    wait_until(lambda: not connection._is_reading, "no more to be read")
    asked.gate.set()
    assert client.read()[2] == b"/slow"
    for i in range(number):
        assert client.read()[2] == b"/%d" % i
    sending.join()
    assert len(asked.requests) == number + 1


def test_a_request_may_come_byte_by_byte(client: RawClient, asked: Asked) -> None:
    client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    request = b"POST /x HTTP/1.1\r\nX-A: 1\r\nx-a: 2\r\nContent-Length: 3\r\n\r\nabc"
    client.send(*(request[i : i + 1] for i in range(len(request))))
    assert client.read()[2] == b"/xabc"
    assert asked.requests[0].headers == {b"x-a": b"1, 2", b"content-length": b"3"}


def test_chunks_with_extensions_and_trailers(client: RawClient, asked: Asked) -> None:
    head = b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    client.send(head, b"3;a=b\r\nabc\r\n", b"2\r\nde\r\n0\r\nX-Late: y\r\n\r\n", GET % 1)
    assert client.read()[2] == b"/xabcde"
    assert client.read()[2] == b"/1"
    assert b"x-late" not in asked.requests[0].headers


def test_small_chunks_are_put_together(stub: StubHttp, client: RawClient) -> None:
    assert stub.server is not None
    client.send(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
    client.send(b"2\r\nab\r\n" * 10_000)
    memory = stub.server.memory
    wait_until(lambda: memory.nbytes == 20_000, "what was sent to come")
    (connection,) = stub.server._connections
    assert len(connection._chunks) == 2
    client.send(
        b"3e8\r\n" + bytes(1000) + b"\r\n1000\r\n" + bytes(4096) + b"\r\n2\r\nxy\r\n0\r\n\r\n"
    )
    assert client.read()[2] == b"/" + b"ab" * 10_000 + bytes(5096) + b"xy"


def test_what_was_expected_is_continued(client: RawClient) -> None:
    head = b"POST /x HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
    client.send(head)
    assert client.read_head() == (100, {})
    client.send(b"abc")
    assert client.read()[2] == b"/xabc"


def test_a_continue_does_not_overtake_an_answer(client: RawClient, asked: Asked) -> None:
    head = b"POST /x HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
    client.send(b"GET /slow HTTP/1.1\r\n\r\n", head)
    wait_until(lambda: asked.requests, "the first request")
    asked.gate.set()
    assert client.read()[2] == b"/slow"
    assert client.read_head()[0] == 100
    client.send(b"abc")
    assert client.read()[2] == b"/xabc"


@pytest.mark.parametrize(
    ("request_line", "headers", "expected"),
    [
        (b"GET / HTTP/1.1", b"Connection: close\r\n", "close"),
        (b"GET / HTTP/1.0", b"", "close"),
        (b"GET / HTTP/1.0", b"Connection: keep-alive\r\n", "keep-alive"),
    ],
)
def test_who_keeps_a_connection(
    client: RawClient, request_line: bytes, headers: bytes, expected: str
) -> None:
    client.send(request_line + b"\r\n" + headers + b"\r\n")
    assert client.read()[1]["connection"] == expected
    if expected == "close":
        assert client.is_ended()
    else:
        client.send(GET % 2)
        assert client.read()[2] == b"/2"


def test_head_has_no_body(client: RawClient) -> None:
    client.send(b"HEAD /abc HTTP/1.1\r\n\r\n")
    assert client.read(is_head=True)[1]["content-length"] == "4"
    client.send(GET % 2)
    assert client.read()[2] == b"/2"


def test_nobody_speaks_another_protocol_here(client: RawClient) -> None:
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    post = b"POST /b HTTP/1.1\r\nContent-Length: 3\r\n"
    client.send(b"GET /a HTTP/1.1\r\n" + upgrade + b"\r\n" + post + upgrade + b"\r\nxy")
    assert client.read()[2] == b"/a"
    client.send(b"z" + GET % 2)
    assert client.read()[2] == b"/bxyz"
    assert client.read()[2] == b"/2"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01", 400),  # TLS
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),  # gRPC
        (b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA b: c\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: b\x00c\r\n\r\n", 400),
        (b"TRACE / HTTP/1.1\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nExpect: a miracle\r\n\r\n", 417),
        (b"POST / HTTP/1.1\r\nContent-Length: 100001\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nContent-Length: " + b"9" * 19 + b"\r\n\r\n", 413),
        (b"GET /" + b"x" * http_connection.TARGET_MAX + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nA: " + b"x" * http_connection.HEAD_MAX, 431),
        (b"GET / HTTP/1.1\r\n" + b"".join(b"A%d: b\r\n" % i for i in range(110)), 431),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 110, 431),
        (
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b"186a1\r\n" + bytes(100001),
            413,
        ),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"x" * 90_000, 400),
    ],
)
def test_what_is_refused(client: RawClient, asked: Asked, sent: bytes, status: int) -> None:
    client.send(sent)
    got, headers, body = client.read()
    assert (got, headers["connection"]) == (status, "close")
    assert body
    assert client.is_ended()
    assert not asked.requests


def test_an_answer_gets_through_to_who_still_sends(client: RawClient) -> None:
    client.send(b"POST / HTTP/1.1\r\nContent-Length: 9000000\r\n\r\n", bytes(9_000_000))
    assert client.read()[0] == 413


def test_what_came_before_a_bad_request_is_answered(client: RawClient, asked: Asked) -> None:
    client.send(b"GET /slow HTTP/1.1\r\n\r\n" + GET % 1 + b"nonsense\r\n\r\n" + GET % 2)
    wait_until(lambda: asked.requests, "the first request")
    asked.gate.set()
    assert [client.read()[::2] for _ in range(2)] == [(200, b"/slow"), (200, b"/1")]
    assert client.read()[0] == 400
    assert client.is_ended()
    assert len(asked.requests) == 2


def test_who_hangs_up_waits_no_more(stub: StubHttp, asked: Asked) -> None:
    with RawClient(stub.port) as client:
        client.send(b"GET /slow HTTP/1.1\r\n\r\n")
        wait_until(lambda: asked.requests, "the request")
    wait_until(lambda: asked.cancelled == 1, "the request to be cancelled")


def test_a_large_answer_waits_for_its_reader(client: RawClient) -> None:
    client.send(b"GET /large HTTP/1.1\r\n\r\n" * 2 + GET % 1)
    assert [len(client.read()[2]) for _ in range(2)] == [8 << 20] * 2
    assert client.read()[2] == b"/1"


def test_bodies_have_so_much_memory_together(stub: StubHttp) -> None:
    server = stub.server
    assert server is not None
    head = b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % MAX_BODY
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(RawClient(stub.port)) for _ in range(5)]
        for client in clients[:4]:
            client.send(head, bytes(MAX_BODY - 1))
        wait_until(lambda: server.memory.nbytes == 4 * (MAX_BODY - 1), "four bodies to be held")
        clients[4].send(head, bytes(10))
        assert clients[4].read()[0] == 503
        for client in clients[:4]:
            client.send(b"\0")
            assert client.read()[0] == 200
    wait_until(lambda: not server._connections, "everybody to be gone")
    assert server.memory.nbytes == 0


def test_the_one_that_is_idle_for_longest_makes_room(stub: StubHttp) -> None:
    assert stub.server is not None
    stub.server._connections_max = 2
    with RawClient(stub.port) as first, RawClient(stub.port) as second:
        for client in (first, second):
            client.send(GET % 1)
            assert client.read()[0] == 200
            stub.server.now += 100
        with RawClient(stub.port) as third:
            third.send(GET % 3)
            assert third.read()[0] == 200
            assert first.is_ended()
            second.send(GET % 2)
            assert second.read()[0] == 200


def test_bodies_without_end_keep_nobody_out(stub: StubHttp) -> None:
    assert stub.server is not None
    stub.server._connections_max = 2
    server = stub.server

    def with_bodies() -> int:
        return sum(connection.phase == BODY for connection in server._connections)

    body = b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n1234"
    with RawClient(stub.port) as first, RawClient(stub.port) as second:
        first.send(body)
        wait_until(lambda: with_bodies() == 1, "the first body to begin")
        server.now += 100
        second.send(body)
        wait_until(lambda: with_bodies() == 2, "the second body to begin")
        with RawClient(stub.port) as third:
            third.send(GET % 3)
            assert third.read()[0] == 200
            assert first.is_ended()
            second.send(b"56789")
            assert second.read()[0] == 200


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/1.1\r\nA: b", 408),
        (b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n12345678", 408),
        (b"GET /large HTTP/1.1\r\n\r\n", 200),
        (b"", None),
    ],
    ids=["head", "body", "reader", "idle"],
)
def test_the_slow_are_ended(
    monkeypatch: pytest.MonkeyPatch, asked: Asked, sent: bytes, status: int | None
) -> None:
    for name in ("_LOOK_S", "_HEAD_S", "_PROGRESS_S", "_IDLE_S", "_LINGER_S"):
        monkeypatch.setattr(http_server, name, 0.01)
    with stub_http(asked.answer, MAX_BODY) as stub, RawClient(stub.port) as client:
        client.send(sent)
        if status == 200:
            wait_until(lambda: not stub.server._connections, "the connection to end")  # type: ignore[union-attr]
        elif status is not None:
            assert client.read()[0] == status
            assert client.is_ended()
        else:
            assert client.is_ended()


def test_a_drain_answers_what_it_took(asked: Asked) -> None:
    with (
        stub_http(asked.answer) as stub,
        RawClient(stub.port) as busy,
        RawClient(stub.port) as open_,
    ):
        open_.send(GET % 1)
        assert open_.read()[0] == 200
        busy.send(b"GET /slow HTTP/1.1\r\n\r\n")
        wait_until(lambda: len(asked.requests) == 2, "the slow request")
        stub.context.leave()
        wait_until(lambda: stub.server._is_draining, "the drain")  # type: ignore[union-attr]
        open_.send(GET % 2)
        status, headers, body = open_.read()
        assert (status, headers["connection"], body) == (
            503,
            "close",
            b"the server is shutting down",
        )
        asked.gate.set()
        status, headers, body = busy.read()
        assert (status, headers["connection"], body) == (200, "close", b"/slow")
        assert busy.is_ended()
