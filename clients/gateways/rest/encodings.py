"""Bodies that come, or go, compressed. Pure.

TensorFlow Serving reads gzip and writes none: compressing takes a processor longer than the local
networks that servers and clients share take to send what it saves. So answers are compressed only
where ``gzip_answers`` says so.
"""

from __future__ import annotations

import zlib

from batchyard.wire.errors import InvalidArgument, ResourceExhausted

# Below, an answer fits into a packet or two anyhow.
GZIP_ANSWER_NBYTES_MIN = 4096

_GZIP = 16 + zlib.MAX_WBITS
_FAST = 1


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
    room = most
    while body:
        member = zlib.decompressobj(_GZIP)
        try:
            part = member.decompress(body, room + 1)
        except zlib.error as error:
            raise InvalidArgument(
                f"Content-Encoding is gzip, but the body is not: {error}"
            ) from None
        room -= len(part)
        if room < 0:
            raise ResourceExhausted(
                f"the body has more than {most} bytes behind its gzip (max_body_mb under [rest])"
            )
        if not member.eof:
            raise InvalidArgument(
                "Content-Encoding is gzip, but the body ends before its gzip does"
            )
        parts.append(part)
        # What some writers append to fill a block.
        body = member.unused_data.lstrip(b"\0")
    return parts[0] if len(parts) == 1 else b"".join(parts)


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
