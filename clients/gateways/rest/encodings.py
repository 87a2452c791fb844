"""Bodies that come, or go, compressed. Pure.

TensorFlow Serving reads gzip and writes none: compressing takes a processor longer than the local
networks that servers and clients share take to send what it saves. So answers are compressed only
where ``gzip_answers`` says so.
"""

from __future__ import annotations

import re
import zlib

from batchyard.wire.errors import InvalidArgument, ResourceExhausted

# Below, an answer fits into a packet or two anyhow.
GZIP_ANSWER_NBYTES_MIN = 4096

_GZIP = 16 + zlib.MAX_WBITS
_FAST = 1
# Some writers begin a new one every 64 KiB.
_MEMBERS_MAX = 65_536
_FIRST_STEP = 1024
# What some writers append to fill a block.
_NULS = re.compile(rb"\0*")


def is_gzip(content_encoding: bytes) -> bool:
    """Whether a body is compressed. Raises InvalidArgument for what nobody here can read."""
    names = {name.strip().lower() for name in content_encoding.split(b",")} - {b"", b"identity"}
    if names <= {b"gzip", b"x-gzip"}:
        return bool(names)
    shown = content_encoding.decode("latin-1")
    raise InvalidArgument(f"Content-Encoding {shown!r} is not understood; gzip and identity are")


def gunzip(body: bytes, most: int) -> bytes:
    """A body as it was before gzip. Raises InvalidArgument for what is no gzip, ResourceExhausted
    where more than ``most`` bytes would come of it."""
    parts = []
    place = nbytes = members = 0
    while place < len(body):
        part, place = _member(body, place, most - nbytes)
        nbytes += len(part)
        members += 1
        if nbytes > most:
            raise ResourceExhausted(
                f"the body has more than {most} bytes behind its gzip (max_body_mb under [rest])"
            )
        if members > _MEMBERS_MAX:
            raise InvalidArgument(f"a body may consist of {_MEMBERS_MAX} members of gzip at most")
        parts.append(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _member(body: bytes, place: int, most: int) -> tuple[bytes, int]:
    """What the member of gzip at ``place`` holds, if it is not more than ``most`` bytes, and where
    the next one begins."""
    view = memoryview(body)
    member = zlib.decompressobj(_GZIP)
    parts: list[bytes] = []
    room = most + 1
    # zlib copies what follows the member's end, which may be many others.
    step = _FIRST_STEP
    while not member.eof and room:
        if place == len(body):
            raise InvalidArgument(
                "Content-Encoding is gzip, but the body ends before its gzip does"
            )
        piece = view[place : place + step]
        try:
            part = member.decompress(piece, room)
        except zlib.error as error:
            raise InvalidArgument(
                f"Content-Encoding is gzip, but the body is not: {error}"
            ) from None
        parts.append(part)
        room -= len(part)
        place += len(piece) - len(member.unused_data)
        step *= 4
    filled = _NULS.match(body, place)
    return b"".join(parts), place if filled is None else filled.end()


def gzip(body: bytes) -> bytes:
    """A body compressed, quickly rather than well."""
    writer = zlib.compressobj(_FAST, wbits=_GZIP)
    return writer.compress(body) + writer.flush()


def takes_gzip(accept_encoding: bytes) -> bool:
    """Whether a client's header Accept-Encoding allows gzip."""
    any_other = False
    for item in accept_encoding.lower().split(b","):
        name, _, weight = (part.strip() for part in item.partition(b";"))
        is_refused = weight.replace(b" ", b"").rstrip(b"0") in (b"q=", b"q=0.", b"q=.")
        if name in (b"gzip", b"x-gzip"):
            return not is_refused
        if name == b"*":
            any_other = not is_refused
    return any_other
