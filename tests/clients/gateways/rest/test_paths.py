"""Which path asks for what: the cases of TensorFlow Serving's own tests, and others."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchyard.clients.gateways.rest.paths import ModelPath, is_served, parse, path_of
from batchyard.wire.errors import InvalidArgument

ESCAPED = "n%21%23%24%25%26%27%28%29%2A%2B%2C%2F%3A%3B%3D%3F%40%5B%5D"
PLAIN = "n!#$%&'()*+,/:;=?@[]"
INT64_MAX = 2**63 - 1


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/v1/models/m", ModelPath("status", "m", None, None)),
        ("GET", f"/v1/models/{ESCAPED}", ModelPath("status", PLAIN, None, None)),
        ("GET", "/v1/models/m/versions/99", ModelPath("status", "m", 99, None)),
        ("GET", "/v1/models/m/labels/l", ModelPath("status", "m", None, "l")),
        ("GET", f"/v1/models/m/labels/{ESCAPED}", ModelPath("status", "m", None, PLAIN)),
        ("GET", "/v1/models/m/metadata", ModelPath("metadata", "m", None, None)),
        ("GET", "/v1/models/m/versions/1/metadata", ModelPath("metadata", "m", 1, None)),
        (
            "GET",
            f"/v1/models/{ESCAPED}/labels/{ESCAPED}/metadata",
            ModelPath("metadata", PLAIN, None, PLAIN),
        ),
        ("POST", "/v1/models/m:predict", ModelPath("predict", "m", None, None)),
        ("POST", "/v1/models/m/versions/1:classify", ModelPath("classify", "m", 1, None)),
        ("POST", "/v1/models/m/labels/l:regress", ModelPath("regress", "m", None, "l")),
        (
            "POST",
            f"/v1/models/{ESCAPED}/labels/{ESCAPED}:predict",
            ModelPath("predict", PLAIN, None, PLAIN),
        ),
        # The patterns take letters of either case, but not the verbs, nor ``metadata``.
        ("POST", "/V1/Models/m/VERSIONS/1:predict", ModelPath("predict", "m", 1, None)),
        ("GET", "/v1/models/m/METADATA", ModelPath("status", "m", None, None)),
        # A query is part of what is matched.
        ("GET", "/v1/models/m?x=1", ModelPath("status", "m?x=1", None, None)),
        (
            "POST",
            f"/v1/models/m/versions/000{INT64_MAX}:predict",
            ModelPath("predict", "m", INT64_MAX, None),
        ),
        # libcurl leaves alone what it cannot unescape.
        ("GET", "/v1/models/a%2", ModelPath("status", "a%2", None, None)),
        ("GET", "/v1/models/a+b%zz", ModelPath("status", "a+b%zz", None, None)),
        ("GET", "/v1/models/%C3%A9%FF", ModelPath("status", "é�", None, None)),
        # "versions" is a name like any other where no number follows.
        ("GET", "/v1/models/versions", ModelPath("status", "versions", None, None)),
    ],
)
def test_what_is_asked_for(method: str, path: str, expected: ModelPath) -> None:
    assert parse(method, path) == expected


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/foo"),
        ("POST", "/v1/foo"),
        ("GET", "/v1/models/debug/model_name"),
        ("POST", "/v1/models"),
        ("GET", "/v1/models/foo:predict"),
        ("GET", "/v1/models/foo/version/50:predict"),
        ("POST", "/v1/models/foo/version/50:regress"),
        ("POST", "/v1/models/foo/versions/HELLO:regress"),
        ("POST", "/v1/models/foo/versions/-1:regress"),
        ("POST", "/v1/models/foo/metadata"),
        ("POST", "/v1/models/foo/label/some_label:regress"),
        ("POST", "/v1/models/foo/versions/50/labels/some_label:regress"),
        ("POST", "/v1/models/foo:predict/"),
        ("POST", "/v1/models/foo:predict?x=1"),
        ("POST", "/v1/models/foo:PREDICT"),
        ("POST", "/v1/models/foo:generate"),
        ("POST", "/v1/models/a/b:predict"),
        ("POST", "/v1/models/foo/versions/\uff11:predict"),
        ("GET", "/v1/models/foo/"),
        ("GET", "/v1/"),
        ("PUT", "/v1/models/foo"),
        ("DELETE", "/v1/models/foo:predict"),
    ],
)
def test_malformed_requests(method: str, path: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse(method, path)
    assert caught.value.message == f"Malformed request: {method} {path}"


@pytest.mark.parametrize("digits", [str(INT64_MAX + 1), str(2**64 - 1), "9" * 6000])
def test_versions_beyond_64_bits(digits: str) -> None:
    with pytest.raises(InvalidArgument, match=f"Failed to convert version: {digits} to numeric"):
        parse("POST", f"/v1/models/m/versions/{digits}:predict")


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/versions/1", "/v1/models/labels/l"])
def test_a_name_is_missing(path: str) -> None:
    with pytest.raises(InvalidArgument, match=r": Missing model name in request\.$"):
        parse("GET", path)


def test_what_is_served_at_all() -> None:
    assert all(map(is_served, ("/v1/models", "/V1/", "/v1/x?y")))
    assert not any(map(is_served, ("/statuspage", "/index", "/v1", "/v2/models", "")))


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/v1/models/m", "/v1/models/m"),
        (b"http://h:8501/v1/models/m?x", "/v1/models/m?x"),
        (b"HTTP://h", "/"),
        (b"*", "*"),
        (b"//h/v1", "//h/v1"),
    ],
)
def test_proxies_ask_for_whole_urls(target: bytes, path: str) -> None:
    assert path_of(target) == path


@given(st.sampled_from(["GET", "POST", "PUT"]), st.text(st.characters(max_codepoint=255)))
def test_any_path_is_read_or_refused(method: str, rest: str) -> None:
    for path in (rest, f"/v1/models/{rest}", f"/v1/models/{rest}:predict"):
        with contextlib.suppress(InvalidArgument):
            assert parse(method, path).name
