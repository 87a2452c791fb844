"""HTTP answers out of bytes that come in any pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchyard.benchmarks.load.targets.http_answers import Answer, AnswerReader, NotHttp

SIZED = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = (
    b"HTTP/1.1 503 Busy\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
)


@given(st.lists(st.integers(1, 20), min_size=1), st.sampled_from([SIZED, CHUNKED]))
def test_pieces_make_answers(sizes: list[int], sent: bytes) -> None:
    reader = AnswerReader()
    found = []
    for _ in range(2):
        rest, turn = sent, 0
        while rest:
            size = sizes[turn % len(sizes)]
            found.append(reader.feed(rest[:size]))
            rest, turn = rest[size:], turn + 1
        assert reader.empty
    expected = Answer(200, b"hello", True) if sent is SIZED else Answer(503, b"abcde", True)
    assert [answer for answer in found if answer is not None] == [expected] * 2


@pytest.mark.parametrize(
    ("head", "keeps"),
    [
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n", False),
        (b"HTTP/1.0 200 OK\r\n", False),
        (b"HTTP/1.1 204 \r\nConnection: keep-alive\r\n", True),
    ],
)
def test_whether_the_connection_is_kept(head: bytes, keeps: bool) -> None:
    answer = AnswerReader().feed(head + b"Content-Length: 0\r\n\r\n")
    assert answer is not None
    assert answer.keeps is keeps


@pytest.mark.parametrize(
    "wrong",
    [
        b"HTTP/1.1 200 OK\r\n\r\nbody",
        b"HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello",
        b"SMTP 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        SIZED + b"more",
    ],
)
def test_what_is_no_answer(wrong: bytes) -> None:
    with pytest.raises(NotHttp):
        AnswerReader().feed(wrong)
