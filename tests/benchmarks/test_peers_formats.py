"""How rows travel to peers, and what is taken for an answer."""

from __future__ import annotations

import json

import numpy as np
import pytest

from batchyard.benchmarks.peers import theirs
from batchyard.benchmarks.peers.formats import Json, Octets, Triton
from batchyard.benchmarks.peers.http_load import HttpFailed

ROW = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
OUTPUT = np.array([1.5, -2.0], np.float32)


def split(request: bytes) -> tuple[list[str], bytes]:
    """The lines of a request's head, and its body."""
    head, _, body = request.partition(b"\r\n\r\n")
    return head.decode().split("\r\n"), body


def test_octets() -> None:
    (request,) = Octets("/infer").requests(0, [ROW])
    head, body = split(request)
    assert head[0] == "POST /infer HTTP/1.1"
    assert f"Content-Length: {ROW.nbytes}" in head
    assert body == ROW.tobytes()
    assert Octets("/infer").output(OUTPUT.tobytes()).tolist() == OUTPUT.tolist()


def test_octets_that_are_no_output() -> None:
    with pytest.raises(HttpFailed, match="3 bytes"):
        Octets("/infer").output(b"abc")


def test_json_has_the_rows_as_instances() -> None:
    (request,) = Json("/v1/models/m:predict").requests(0, [ROW])
    head, body = split(request)
    assert head[0] == "POST /v1/models/m:predict HTTP/1.1"
    assert json.loads(body) == {"instances": ROW.tolist()}
    assert Json("/").output(b'{"predictions": [[1.5, -2.0]]}').tolist() == OUTPUT.tolist()
    with pytest.raises(HttpFailed, match="without predictions"):
        Json("/").output(b'{"error": "no"}')


def test_triton_request_has_a_json_header_and_bytes() -> None:
    (request,) = Triton().requests(0, [ROW])
    head, body = split(request)
    (length,) = [line.partition(": ")[2] for line in head if line.startswith("Inference-Header")]
    header = json.loads(body[: int(length)])
    assert body[int(length) :] == ROW.tobytes()
    assert header["inputs"][0]["shape"] == [1, 2, 3]
    assert header["inputs"][0]["parameters"] == {"binary_data_size": ROW.nbytes}


def test_triton_rows_have_a_dimension() -> None:
    (request,) = Triton().requests(0, [np.ones(1, np.float32)])
    assert b'"shape": [1, 1]' in request


@pytest.mark.parametrize("padding", [b"", b"  "])
def test_triton_answer(padding: bytes) -> None:
    header = {"outputs": [{"name": "y", "parameters": {"binary_data_size": OUTPUT.nbytes}}]}
    body = json.dumps(header).encode() + padding + OUTPUT.tobytes()
    assert Triton().output(body).tolist() == OUTPUT.tolist()


def test_triton_answer_that_is_too_short() -> None:
    header = {"outputs": [{"name": "y", "parameters": {"binary_data_size": 400}}]}
    with pytest.raises(HttpFailed, match="promised"):
        Triton().output(json.dumps(header).encode())


def test_right_answer_may_be_rounded() -> None:
    theirs.check(Octets("/"), OUTPUT, (OUTPUT * np.float32(1.00001)).tobytes())


@pytest.mark.parametrize("wrong", [OUTPUT + 1, OUTPUT[:1]])
def test_wrong_answer(wrong: np.ndarray[tuple[int], np.dtype[np.float32]]) -> None:
    with pytest.raises(HttpFailed, match="is right"):
        theirs.check(Octets("/"), OUTPUT, wrong.tobytes())
