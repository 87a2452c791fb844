"""Callers of HTTP who send much that costs little: others are answered meanwhile."""

from __future__ import annotations

import sys
import threading

from support.http_raw import RawClient, StubHttp, stub_http
from support.waiting import wait_until

from batchyard.clients.gateways.rest import http_connection
from batchyard.clients.gateways.rest.http_messages import HttpRequest, HttpResponse

GET = b"GET /%d HTTP/1.1\r\n\r\n"
UPGRADE = b"GET /%d HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"


async def say_target(request: HttpRequest) -> HttpResponse:
    """An answer that is made without waiting for anything."""
    return HttpResponse(request.target)


def only_connection(stub: StubHttp) -> http_connection.HttpConnection:
    assert stub.server is not None
    (connection,) = wait_until(lambda: [*stub.server._connections], "the connection")
    return connection


def test_many_upgrades_sent_ahead_are_answered() -> None:
    number = 3000
    with stub_http(say_target, 1000) as stub, RawClient(stub.port) as client:
        sending = threading.Thread(
            target=client.send, args=[b"".join(UPGRADE % i for i in range(number))]
        )
        sending.start()
        for i in range(number):
            assert client.read()[2] == b"/%d" % i
        sending.join()


def test_others_have_their_turn_between_requests_sent_ahead() -> None:
    targets: list[bytes] = []
    other_may_ask = threading.Event()

    async def answer(request: HttpRequest) -> HttpResponse:
        targets.append(request.target)
        if request.target == b"/0":
            # The other one's request is there before the next of these is answered.
            other_may_ask.set()
            other_asked.wait()
        return HttpResponse(request.target)

    other_asked = threading.Event()
    number = 10_000
    with stub_http(answer, 1000) as stub, RawClient(stub.port) as client:
        with RawClient(stub.port) as other:
            wait_until(lambda: len(stub.server._connections) == 2, "both connections")
            sent = b"".join(GET % i for i in range(number))
            sending = threading.Thread(target=client.send, args=[sent])
            sending.start()
            assert other_may_ask.wait(10)
            other.send(b"GET /other HTTP/1.1\r\n\r\n")
            other_asked.set()
            assert other.read()[2] == b"/other"
        for i in range(number):
            assert client.read()[2] == b"/%d" % i
        sending.join()
    assert targets.index(b"/other") < 200


def test_small_chunks_take_no_more_memory_than_they_are() -> None:
    number = 20_000
    with stub_http(say_target, 1_000_000) as stub, RawClient(stub.port) as client:
        client.send(b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
        client.send(b"2\r\nxy\r\n" * number)
        connection = only_connection(stub)
        wait_until(lambda: connection._body_nbytes == 2 * number, "all chunks")
        assert sum(map(sys.getsizeof, connection._chunks)) < 3 * 2 * number
        client.send(b"0\r\n\r\n")
        assert client.read()[0] == 200
