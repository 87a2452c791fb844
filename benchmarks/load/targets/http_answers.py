"""HTTP/1.1 answers out of bytes, as far as a load generator needs them."""

from __future__ import annotations

from dataclasses import dataclass

_HEAD_END = b"\r\n\r\n"
_LENGTH = b"\r\ncontent-length:"
_CHUNKED = b"\r\ntransfer-encoding: chunked"
_CLOSE = b"\r\nconnection: close"


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer."""

    status: int
    body: bytes
    keeps: bool
    """Whether the connection takes another request."""


class NotHttp(Exception):
    """What came is no answer; says why."""


class AnswerReader:
    """Puts one answer after the other together. Sans I/O: the connection feeds it."""

    def __init__(self) -> None:
        self._data = bytearray()

    @property
    def empty(self) -> bool:
        """Whether nothing of an answer has come."""
        return not self._data

    def feed(self, data: bytes) -> Answer | None:
        """The answer, once it is whole. Raises NotHttp."""
        self._data += data
        head_end = self._data.find(_HEAD_END)
        if head_end < 0:
            return None
        head = bytes(self._data[:head_end]).lower()
        start = head_end + len(_HEAD_END)
        found = self._chunked(start) if _CHUNKED in head else self._sized(head, start)
        if found is None:
            return None
        body, end = found
        if end != len(self._data):
            raise NotHttp("more than the answer came")
        self._data.clear()
        return Answer(_status(head), body, _CLOSE not in head and head.startswith(b"http/1.1"))

    def _sized(self, head: bytes, start: int) -> tuple[bytes, int] | None:
        at = head.find(_LENGTH)
        if at < 0:
            raise NotHttp("an answer without its length")
        length = head[at + len(_LENGTH) :].partition(b"\r\n")[0].strip()
        end = start + _number(length, 10)
        return (bytes(self._data[start:end]), end) if len(self._data) >= end else None

    def _chunked(self, start: int) -> tuple[bytes, int] | None:
        chunks: list[bytes] = []
        while (line_end := self._data.find(b"\r\n", start)) >= 0:
            nbytes = _number(bytes(self._data[start:line_end]).partition(b";")[0].strip(), 16)
            start = line_end + 2
            end = start + nbytes + 2
            if len(self._data) < end:
                return None
            if not nbytes:
                return b"".join(chunks), end
            chunks.append(bytes(self._data[start : start + nbytes]))
            start = end
        return None


def _status(head: bytes) -> int:
    protocol, _, rest = head.partition(b" ")
    if not protocol.startswith(b"http/1."):
        raise NotHttp("an answer that is not HTTP/1")
    return _number(rest[:3], 10)


def _number(digits: bytes, base: int) -> int:
    try:
        value = int(digits, base)
    except ValueError:
        raise NotHttp(f"{digits[:20]!r} where a number is due") from None
    if value < 0:
        raise NotHttp(f"{value} where a length is due")
    return value
