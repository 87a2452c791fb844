"""HTTP requests as they came, and responses as they are sent. Pure."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from http import HTTPStatus

JSON = b"application/json"
TEXT = b"text/plain"

_OF_UPGRADES = (b"connection", b"upgrade", b"http2-settings")
_REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}
_REASONS[499] = b"Client Closed Request"


@dataclass(slots=True, eq=False)
class HttpRequest:
    """One request. Names of headers are lower case; of one that came twice, the values are joined
    by a comma."""

    method: str = ""
    target: bytes = b""
    headers: dict[bytes, bytes] = field(default_factory=dict)
    body: bytes = b""
    keeps_alive: bool = True
    is_http_1_0: bool = False

    def head_without_upgrade(self) -> bytes:
        """The head as it would be if its sender had not asked for another protocol."""
        first = b"%b %b HTTP/1.1\r\n" % (self.method.encode(), self.target)
        kept = [item for item in self.headers.items() if item[0] not in _OF_UPGRADES]
        if self.is_http_1_0 or b"close" in self.headers.get(b"connection", b"").lower():
            kept.append((b"connection", b"close"))
        return b"%b%b\r\n" % (first, b"".join(b"%b: %b\r\n" % header for header in kept))


@dataclass(slots=True, eq=False)
class HttpResponse:
    """One response. ``closes``: the connection ends with it."""

    body: bytes
    status: int = 200
    content_type: bytes = JSON
    headers: Sequence[tuple[bytes, bytes]] = ()
    closes: bool = False


class Heads:
    """Makes heads of responses; the date is formatted once a second."""

    def __init__(self, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        """``headers`` are part of each."""
        # Whoever may put words into an error must not make it a page in somebody's browser.
        always = (*headers, (b"X-Content-Type-Options", b"nosniff"))
        self._always = b"".join(b"%b: %b\r\n" % header for header in always)
        self._starts: dict[tuple[int, bytes], bytes] = {}
        self._second = -1

    def head(self, response: HttpResponse, request: HttpRequest | None) -> bytes:
        """The bytes before the body of an answer to ``request``, which None stands for one that
        could not be read."""
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._starts.clear()
        start = self._starts.get((response.status, response.content_type))
        if start is None:
            start = self._start(response.status, response.content_type)
        length = len(response.body)
        is_kept = request is not None and request.keeps_alive and not response.closes
        is_old = request is not None and request.is_http_1_0
        if is_kept and not is_old and not response.headers:
            return b"%b%d\r\n\r\n" % (start, length)
        more = b"".join(b"%b: %b\r\n" % header for header in response.headers)
        if not is_kept:
            more += b"Connection: close\r\n"
        elif is_old:
            more += b"Connection: keep-alive\r\n"
        return b"%b%d\r\n%b\r\n" % (start, length, more)

    def _start(self, status: int, content_type: bytes) -> bytes:
        # As RFC 9110 has it: ``email.utils`` and ``http.server`` would depend on nothing else.
        date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(self._second)).encode()
        start = (
            b"HTTP/1.1 %d %b\r\nDate: %b\r\n" % (status, _REASONS.get(status, b""), date)
            + b"Content-Type: %b\r\n" % content_type
            + self._always
            + b"Content-Length: "
        )
        self._starts[status, content_type] = start
        return start
