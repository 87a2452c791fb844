"""The cases of TensorFlow Serving's http_rest_api_handler_test.cc, against SavedModels that are
served, and what else its clients see."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from support.rest_gateway import RestCaller, rest_gateway
from support.server import Server

MODEL = "/v1/models/half_plus_two"
LABELLED = "/v1/models/latest"
X_TO_Y = {"signature_name": "regress_x_to_y", "examples": [{"x": 80.0}]}
VERSION_123 = {
    "model_version_status": [
        {
            "version": "123",
            "state": "AVAILABLE",
            "status": {"error_code": "OK", "error_message": ""},
        }
    ]
}


@pytest.fixture(scope="module")
def rest(tensorflow_server: Server) -> Iterator[RestCaller]:
    with rest_gateway(tensorflow_server) as caller:
        yield caller


@pytest.mark.parametrize(
    ("path", "document", "expected"),
    [
        (MODEL, {"instances": [[1.0], [3.0]]}, {"predictions": [[2.5], [3.5]]}),
        (f"{MODEL}/versions/123", {"instances": [1.0, 2.0]}, {"predictions": [2.5, 3.0]}),
        (f"{LABELLED}/labels/stable", {"instances": [1.0, 2.0]}, {"predictions": [3.5, 4.0]}),
        (
            f"{MODEL}/versions/123",
            {"signature_name": "serving_default", "instances": [3.0, 4.0]},
            {"predictions": [3.5, 4.0]},
        ),
        (
            f"{MODEL}/versions/123",
            {"signature_name": "serving_default", "inputs": [3.0, 4.0]},
            {"outputs": [3.5, 4.0]},
        ),
        ("/V1/MODELS/half_plus_two", {"instances": [1.0]}, {"predictions": [2.5]}),
    ],
)
def test_predict(rest: RestCaller, path: str, document: Any, expected: Any) -> None:
    answer = rest.post(f"{path}:predict", document)
    assert (answer.status, answer.json) == (200, expected)
    assert answer.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("path", [MODEL, f"{MODEL}/versions/123", f"{LABELLED}/labels/stable"])
def test_regress(rest: RestCaller, path: str) -> None:
    answer = rest.post(f"{path}:regress", X_TO_Y)
    version_124 = path.startswith(LABELLED)
    assert (answer.status, answer.json) == (200, {"results": [43.0 if version_124 else 42.0]})


@pytest.mark.parametrize("path", [MODEL, f"{MODEL}/versions/123"])
def test_classify(rest: RestCaller, path: str) -> None:
    document = {"signature_name": "classify_x_to_y", "examples": [{"x": 20.0}]}
    answer = rest.post(f"{path}:classify", document)
    assert (answer.status, answer.json) == (200, {"results": [[["", 12.0]]]})


@pytest.mark.parametrize("path", [MODEL, f"{MODEL}/versions/123"])
def test_status(rest: RestCaller, path: str) -> None:
    answer = rest.get(path)
    assert (answer.status, answer.json) == (200, VERSION_123)
    assert answer.headers["Content-Type"] == "application/json"


def test_metadata(rest: RestCaller) -> None:
    told = rest.get(f"{MODEL}/metadata").json
    assert told["model_spec"] == {
        "name": "half_plus_two",
        "signature_name": "",
        "version": "123",
        **({"version_label": ""} if "version_label" in told["model_spec"] else {}),
    }
    signatures = told["metadata"]["signature_def"]["signature_def"]
    assert signatures["serving_default"]["inputs"]["x"]["dtype"] == "DT_FLOAT"
    assert signatures["regress_x_to_y"]["method_name"] == "tensorflow/serving/regress"


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("GET", "/v1/foo", 400, "Malformed request: GET /v1/foo"),
        ("POST", "/v1/models/foo/metadata", 400, "Malformed request: POST /v1/models/foo/metadata"),
        ("PUT", MODEL, 400, f"Malformed request: PUT {MODEL}"),
        ("OPTIONS", MODEL, 400, f"Malformed request: OPTIONS {MODEL}"),
        ("GET", f"{MODEL}:predict", 400, f"Malformed request: GET {MODEL}:predict"),
        ("GET", "/v1/models", 400, "Missing model name in request."),
        ("GET", "/v1/models/foo", 404, "Could not find any versions of model foo"),
        ("GET", f"{MODEL}/versions/1", 404, "Could not find version 1 of model half_plus_two"),
        (
            "GET",
            f"{MODEL}?pretty",
            404,
            "Could not find any versions of model half_plus_two?pretty",
        ),
        ("GET", f"{LABELLED}/labels/nope", 400, "Unrecognized servable version label: nope"),
        ("GET", "/v1/models/foo/metadata", 404, "Servable not found for request: Latest(foo)"),
        (
            "POST",
            f"/v1/models/foo/versions/{2**64 - 1}:regress",
            400,
            f"Failed to convert version: {2**64 - 1} to numeric.",
        ),
        ("GET", "/", 404, "nothing is served at /; models are below /v1/models/"),
        ("GET", "/v2/models/m", 404, "nothing is served at /v2/models/m"),
    ],
)
def test_paths_that_are_wrong(
    rest: RestCaller, method: str, path: str, status: int, words: str
) -> None:
    answer = rest.ask(method, path)
    assert (answer.status, list(answer.json)) == (status, ["error"])
    assert words in answer.json["error"]
    assert answer.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/v1/models/foo", b'{"instances": [1]}', 404, "Servable not found for request"),
        ("/v1/models/foo/versions/50", b'{"instances": [1]}', 404, "Specific(foo, 50)"),
        ("/v1/models/half_plus_two99", b'{"instances": [1]}', 404, "Servable not found"),
        (f"{MODEL}/versions/9", b'{"instances": [1]}', 404, "Specific(half_plus_two, 9)"),
        (MODEL, b"", 400, "JSON Parse error: The document is empty"),
        (MODEL, b"instances = [1, 2]", 400, "JSON Parse error: Invalid value"),
        (MODEL, b'{"instances": ["x", "y"]}', 400, "not of expected type: float"),
        (
            f"{LABELLED}/labels/nope",
            b'{"instances": ["x"]}',
            400,
            "Unrecognized servable version label",
        ),
        (MODEL, b'{"signature_name": 100}', 400, "'signature_name' key must be a string value."),
        (
            MODEL,
            b'{"signature_name": "nope", "instances": [1]}',
            400,
            'Serving signature name: "nope" not found in signature def',
        ),
    ],
)
def test_predictions_that_are_wrong(
    rest: RestCaller, path: str, body: bytes, status: int, words: str
) -> None:
    answer = rest.post(f"{path}:predict", body)
    assert (answer.status, list(answer.json)) == (status, ["error"])
    assert words in answer.json["error"]


def test_head_is_get_without_a_body(rest: RestCaller) -> None:
    answer = rest.ask("HEAD", MODEL)
    assert (answer.status, answer.text) == (200, "")
    assert answer.headers["Content-Length"] == rest.get(MODEL).headers["Content-Length"]


def test_a_gzipped_body(rest: RestCaller) -> None:
    body = gzip.compress(json.dumps({"instances": [1.0]}).encode())
    headers = {"Content-Encoding": "gzip"}
    assert rest.ask("POST", f"{MODEL}:predict", body, headers).json == {"predictions": [2.5]}
    assert rest.ask("POST", f"{MODEL}:predict", body[:9], headers).status == 400


def test_a_large_body_is_read_beside_others(rest: RestCaller) -> None:
    rows = np.linspace(0, 1, 6000, dtype=np.float32)
    body = json.dumps({"instances": rows.tolist()}).encode()
    # Beyond what is read and printed on the spot.
    body += b" " * 128 * 1024
    answer = rest.post(f"{MODEL}:predict", body)
    assert answer.status == 200, answer.text[:500]
    assert np.array_equal(np.float32(answer.json["predictions"]), rows / 2 + 2)


def test_a_request_has_its_id(rest: RestCaller) -> None:
    for document, status in (({"instances": [1.0]}, 200), ({}, 400)):
        answer = rest.post(f"{MODEL}:predict", document, **{"X-Request-Id": "job-7"})
        assert (answer.status, answer.headers["X-Request-Id"]) == (status, "job-7")
    odd = rest.post(f"{MODEL}:predict", {"instances": [1.0]}, **{"X-Request-Id": "x" * 200})
    assert (odd.status, odd.headers["X-Request-Id"]) == (200, None)


def test_metrics_of_both_names(rest: RestCaller) -> None:
    assert rest.post(f"{MODEL}:predict", {"instances": [1.0]}).status == 200
    page = rest.get("/monitoring/prometheus/metrics")
    assert page.headers["Content-Type"].startswith("text/plain")
    labels = 'model_name="half_plus_two",API="predict",entrypoint="REST"'
    assert f":tensorflow:serving:request_latency_count{{{labels}}} " in page.text
    assert ':tensorflow:serving:request_count{model_name="half_plus_two",status="OK"} ' in page.text
    assert 'batchyard_requests_total{code="OK",model="half_plus_two"' in page.text
    promtool = shutil.which("promtool")
    if promtool is not None:
        told = subprocess.run(
            [promtool, "check", "metrics"],
            input=page.text.encode(),
            capture_output=True,
            timeout=30,
        )
        # 3: it was read, and there are opinions on TensorFlow Serving's names.
        assert told.returncode in (0, 3), told.stderr
        assert b"error while linting" not in told.stderr
    odd = rest.get("/monitoring/prometheus/metrics?x=1")
    assert (odd.status, odd.headers["Content-Type"]) == (400, "text/plain")
    assert "Unexpected path: " in odd.text


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize(
    "arguments",
    [
        ["-d", '{"instances": [1.0, 2.0, 5.0]}'],  # as a form, and as the documentation has it
        ["-d", '{"instances": [1.0, 2.0, 5.0]}', "-H", "Expect: 100-continue"],
        ["-d", '{"instances": [1.0, 2.0, 5.0]}', "-H", "Transfer-Encoding: chunked"],
        ["-d", '{"instances": [1.0, 2.0, 5.0]}', "--http1.0"],
        ["-d", '{"instances": [1.0, 2.0, 5.0]}', "--http2"],
        ["-d", '{"instances": [1.0, 2.0, 5.0]}', "--compressed"],
    ],
)
def test_curl(rest: RestCaller, arguments: list[str]) -> None:
    url = f"http://localhost:{rest.port}{MODEL}:predict"
    told = subprocess.run(
        ["curl", "-sSf", "-X", "POST", url, *arguments], capture_output=True, timeout=30, check=True
    )
    assert json.loads(told.stdout) == {"predictions": [2.5, 3.0, 4.5]}
