"""The raw HTTP client that peers are measured with."""

from __future__ import annotations

import itertools

import pytest
from support.descriptors import no_descriptors_leak
from support.http_stub import Answer, http_stub, ok

from batchyard.benchmarks.peers.http_load import (
    Connection,
    HttpFailed,
    Request,
    parse,
    post,
    requests_per_s,
)

ANSWER = b"HTTP/1.1 200 OK\r\nServer: x\r\ncontent-length: 4\r\nX: y\r\n\r\nbody"


def test_whole_answer() -> None:
    assert parse(ANSWER) == b"body"


@pytest.mark.parametrize("nbytes", range(0, len(ANSWER), 5))
def test_part_of_an_answer(nbytes: int) -> None:
    assert parse(ANSWER[:nbytes]) is None


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (ANSWER.replace(b"200 OK", b"503 Busy"), "503 Busy .* body"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "without its length"),
    ],
)
def test_bad_answer(answer: bytes, message: str) -> None:
    with pytest.raises(HttpFailed, match=message):
        parse(answer)


def echoed(bodies: list[bytes]) -> list[Request]:
    """Requests that want their own body back."""

    def request(body: bytes) -> Request:
        def check(answer: bytes) -> None:
            if answer != body:
                raise HttpFailed("not my own")

        return Request(post("/", body), check)

    return [request(body) for body in bodies]


@pytest.mark.parametrize("piece_nbytes", [3, 1 << 20])
def test_every_connection_gets_its_own_answers(piece_nbytes: int) -> None:
    seen: set[bytes] = set()

    def answer(body: bytes) -> bytes:
        seen.add(body)
        return ok(body)

    bodies = [b"%4d" % i for i in range(5)]
    with no_descriptors_leak(), http_stub(answer, piece_nbytes) as port:
        assert requests_per_s(port, echoed(bodies), 0.01, 0.02) > 0
    assert seen == set(bodies)


def test_requests_larger_than_a_socket_takes_at_once() -> None:
    bodies = [bytes([i]) * 8_000_000 for i in range(2)]
    with http_stub(ok) as port:
        assert requests_per_s(port, echoed(bodies), 0.0, 0.01) > 0


def _growing() -> Answer:
    lengths = itertools.count(4)
    return lambda body: ok(bytes(next(lengths)))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda body: ok(b"else"), "not my own"),
        (lambda body: b"", "closed"),
        (lambda body: b"HTTP/1.1 500 Oh\r\nContent-Length: 5\r\n\r\nsorry", "500 Oh .*sorry"),
    ],
)
def test_what_goes_wrong_is_told(answer: Answer, message: str) -> None:
    with http_stub(answer) as port, pytest.raises(HttpFailed, match=message):
        requests_per_s(port, echoed([b"body"]), 0.01, 0.01)


def test_answer_of_another_length_is_wrong() -> None:
    requests = [Request(post("/", b"body"), lambda body: None)]
    with http_stub(_growing()) as port, pytest.raises(HttpFailed, match="5 bytes instead of 4"):
        requests_per_s(port, requests, 0.01, 10.0)


def test_nobody_listens() -> None:
    with http_stub(ok) as port:
        pass
    with pytest.raises(HttpFailed, match="refused"):
        requests_per_s(port, echoed([b"body"]), 0.01, 0.01)


def test_one_call_after_the_other() -> None:
    with http_stub(ok, piece_nbytes=7) as port, Connection(port) as connection:
        assert connection.call(post("/", b"first")) == b"first"
        assert connection.call(post("/", b"second")) == b"second"
