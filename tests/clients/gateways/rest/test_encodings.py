"""Compressed bodies, in both directions, and bombs."""

from __future__ import annotations

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchyard.clients.gateways.rest import encodings
from batchyard.wire.errors import InvalidArgument, ResourceExhausted


@given(st.lists(st.binary(max_size=200), min_size=1, max_size=3))
def test_what_was_compressed_comes_back(parts: list[bytes]) -> None:
    whole = b"".join(parts)
    members = b"".join(map(gzip.compress, parts))
    assert encodings.gunzip(members, len(whole)) == whole
    assert encodings.gunzip(members + b"\0" * 9, len(whole)) == whole
    assert gzip.decompress(encodings.gzip(whole)) == whole


def test_a_bomb_is_refused_before_it_goes_off() -> None:
    bomb = zlib.compressobj(9, wbits=31)
    packed = b"".join(bomb.compress(bytes(1 << 20)) for _ in range(64)) + bomb.flush()
    assert len(packed) < 1 << 17
    with pytest.raises(ResourceExhausted, match="more than 1000 bytes behind its gzip"):
        encodings.gunzip(packed, 1000)
    with pytest.raises(ResourceExhausted):
        encodings.gunzip(gzip.compress(b"x" * 600) * 2, 1000)


@pytest.mark.parametrize(
    "body",
    [b"no gzip", gzip.compress(b"x" * 100)[:-4], gzip.compress(b"x") + b"more"],
    ids=["no gzip", "cut", "followed"],
)
def test_what_is_no_gzip(body: bytes) -> None:
    with pytest.raises(InvalidArgument, match="Content-Encoding is gzip, but"):
        encodings.gunzip(body, 1000)


def test_members_are_read_in_time_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    # With a copy of all that follows for each of them, these would take minutes.
    member = gzip.compress(b"")
    assert encodings.gunzip(member * 60_000 + gzip.compress(b"x"), 10) == b"x"
    monkeypatch.setattr(encodings, "_MEMBERS_MAX", 3)
    with pytest.raises(InvalidArgument, match="3 members of gzip at most"):
        encodings.gunzip(member * 4, 10)


def test_an_empty_body_needs_no_gzip() -> None:
    assert encodings.gunzip(b"", 10) == b""


@pytest.mark.parametrize(
    ("header", "expected"),
    [(b"gzip", True), (b"GZip", True), (b"x-gzip", True), (b"identity", False), (b"", False)],
)
def test_content_encoding(header: bytes, expected: bool) -> None:
    assert encodings.is_gzip(header) is expected


@pytest.mark.parametrize("header", [b"br", b"gzip, deflate", b"zstd"])
def test_encodings_that_nobody_reads(header: bytes) -> None:
    with pytest.raises(InvalidArgument, match="is not understood; gzip and identity are"):
        encodings.is_gzip(header)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (b"gzip", True),
        (b"deflate, gzip;q=0.5", True),
        (b"*", True),
        (b"gzip;q=0", False),
        (b"gzip; q=0.000, *", False),
        (b"br, *;q=0", False),
        (b"identity", False),
        (b"", False),
    ],
)
def test_accept_encoding(header: bytes, expected: bool) -> None:
    assert encodings.takes_gzip(header) is expected
