"""What TensorFlow Serving's own tests and documents ask of its server, asked of ``batchyard tfs``.

Re-expressed from its ``model_servers/tensorflow_model_server_test.py`` and ``docs/api_rest.md``.
gRPC is spoken by the published stubs, REST by Python's own client. One server does for nearly all.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.model_server import DEFAULT, LABELLED, SPARE, ModelServer, model_config, rest
from support.published_messages import is_installed
from support.server import refused
from support.serving_stubs import (
    classify,
    multi_inference,
    predict,
    regress,
    reload,
    signatures,
    statuses,
)
from support.waiting import wait_until

from batchyard.clients.errors import FailedPrecondition, InvalidArgument, NotFound

pytestmark = pytest.mark.skipif(not is_installed(), reason="tensorflow-serving-api is missing")

Ask = Callable[..., Any]

MODEL = "half_plus_two"
# With variables of TensorFlow 1, with requests in batches, and of TensorFlow 2.
PREDICTING = [(MODEL, 123, 3.0), ("half_plus_three", 123, 4.0), ("product", 1, 12.0)]
CLASSIFYING = [(MODEL, 123, 3.0), ("half_plus_three", 123, 4.0), ("examples_tf2", 1, 3.0)]

# An image of the Triton SDK, and its client package, have it.
_PERF_ANALYZER = shutil.which("perf_analyzer")
STATUS = """\
{
 "model_version_status": [
  {
   "version": "123",
   "state": "AVAILABLE",
   "status": {
    "error_code": "OK",
    "error_message": ""
   }
  }
 ]
}
"""


@pytest.mark.parametrize("output_filter", [("y",), ()])
@pytest.mark.parametrize(("model", "version", "expected"), PREDICTING)
def test_predict(
    ask: Ask,
    served: ModelServer,
    model: str,
    version: int,
    expected: float,
    output_filter: tuple[str, ...],
) -> None:
    outputs, spec = ask(predict, served.grpc, model, [2.0], output_filter=output_filter)
    assert outputs == {"y": [expected]}
    assert spec == (model, version, DEFAULT)


def test_predict_of_another_signature(ask: Ask, served: ModelServer) -> None:
    for signature, expected in (("custom_signature_key", 2.0), (DEFAULT, 1.0)):
        outputs, spec = ask(predict, served.grpc, "two_constants", [2.0], signature=signature)
        assert outputs == {"y": [expected]}
        assert spec == ("two_constants", 1, signature)


def test_predict_with_all_dimensions(ask: Ask, served: ModelServer) -> None:
    outputs, _ = ask(predict, served.grpc, "half_plus_two_tf2", [2.0], shape=(1, 1))
    assert outputs == {"y": [3.0]}


def test_predict_over_a_unix_socket(ask: Ask, served: ModelServer) -> None:
    outputs, spec = ask(predict, f"unix:{served.socket}", MODEL, [2.0])
    assert outputs == {"y": [3.0]}
    assert spec == (MODEL, 123, DEFAULT)


@pytest.mark.parametrize(("model", "version", "expected"), CLASSIFYING)
def test_classify(ask: Ask, served: ModelServer, model: str, version: int, expected: float) -> None:
    classes, spec = ask(classify, served.grpc, model, "classify_x_to_y", [2.0])
    assert classes == [[("", expected)]]
    assert spec == (model, version, "classify_x_to_y")


@pytest.mark.parametrize(("model", "version", "expected"), CLASSIFYING)
def test_regress(ask: Ask, served: ModelServer, model: str, version: int, expected: float) -> None:
    values, spec = ask(regress, served.grpc, model, "regress_x_to_y", [2.0])
    assert values == [expected]
    assert spec == (model, version, "regress_x_to_y")


@pytest.mark.parametrize(("model", "version", "expected"), CLASSIFYING)
def test_multi_inference(
    ask: Ask, served: ModelServer, model: str, version: int, expected: float
) -> None:
    tasks = [("regress_x_to_y", "regress"), ("classify_x_to_y", "classify")]
    assert ask(multi_inference, served.grpc, model, tasks, [2.0]) == [
        ([expected], (model, version, "regress_x_to_y")),
        ([[("", expected)]], (model, version, "classify_x_to_y")),
    ]


def test_multi_inference_of_examples_and_of_numbers(ask: Ask, served: ModelServer) -> None:
    tasks = [("regress_x_to_y", "regress"), ("regress_x2_to_y3", "regress")]
    with pytest.raises(InvalidArgument, match="Input tensor must be the same for all Signatures"):
        ask(multi_inference, served.grpc, MODEL, tasks, [2.0])


@pytest.mark.parametrize(
    ("spec", "path", "version"),
    [
        ({"version": 123}, "/versions/123", 123),
        ({"version": 124}, "/versions/124", 124),
        ({"label": "stable"}, "/labels/stable", 123),
        ({"label": "canary"}, "/labels/canary", 124),
        ({}, "", 124),
    ],
)
def test_versions_and_labels(
    ask: Ask, served: ModelServer, spec: dict[str, Any], path: str, version: int
) -> None:
    y = {123: 3.0, 124: 4.0}[version]
    outputs, answered = ask(predict, served.grpc, LABELLED, [2.0], **spec)
    assert (outputs, answered) == ({"y": [y]}, (LABELLED, version, DEFAULT))
    _, _, text = rest(served, f"/v1/models/{LABELLED}{path}:predict", '{"instances": [2.0]}')
    assert json.loads(text) == {"predictions": [y]}
    found = ask(statuses, served.grpc, LABELLED, **spec)
    assert found == [(number, "AVAILABLE", 0) for number in ((version,) if spec else (124, 123))]


def test_model_status(ask: Ask, served: ModelServer) -> None:
    assert ask(statuses, served.grpc, MODEL) == [(123, "AVAILABLE", 0)]
    assert ask(statuses, served.grpc, MODEL, version=123) == [(123, "AVAILABLE", 0)]


def test_model_metadata(ask: Ask, served: ModelServer) -> None:
    methods, (name, version, _) = ask(signatures, served.grpc, MODEL)
    assert (name, version) == (MODEL, 123)
    assert methods == {
        "classify_x_to_y": "tensorflow/serving/classify",
        "regress_x2_to_y3": "tensorflow/serving/regress",
        "regress_x_to_y": "tensorflow/serving/regress",
        "regress_x_to_y2": "tensorflow/serving/regress",
        DEFAULT: "tensorflow/serving/predict",
    }


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        # What its own tests wait for: that tells them that a server is up.
        ({"model": "intentionally_missing_model"}, NotFound, "Servable not found"),
        ({"model": MODEL, "version": 9}, NotFound, r"Specific\(half_plus_two, 9\)"),
        ({"model": MODEL, "label": "no"}, InvalidArgument, "Unrecognized servable version label"),
        ({"model": MODEL, "signature": "no"}, FailedPrecondition, 'signature key "no" not found'),
        ({"model": MODEL, "output_filter": ["no"]}, InvalidArgument, "alias not found.*: no"),
    ],
)
def test_what_is_not_there(
    ask: Ask, served: ModelServer, spec: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ask(predict, served.grpc, x=[2.0], **spec)


# REST


@pytest.mark.parametrize(
    ("method", "body", "answer"),
    [
        ("predict", {"instances": [2.0, 3.0, 4.0]}, {"predictions": [3.0, 3.5, 4.0]}),
        ("predict", {"inputs": [2.0, 3.0, 4.0]}, {"outputs": [3.0, 3.5, 4.0]}),
        # Its model declares (?, 1), and takes more.
        ("predict", {"instances": [[1, 2], [3, 4]]}, {"predictions": [[2.5, 3.0], [3.5, 4.0]]}),
        ("predict", {"inputs": 2.0}, {"outputs": 3.0}),
        (
            "classify",
            {"signature_name": "classify_x_to_y", "examples": [{"x": 2.0}]},
            {"results": [[["", 3.0]]]},
        ),
        (
            "regress",
            {"signature_name": "regress_x_to_y", "examples": [{"x": 2.0}]},
            {"results": [3.0]},
        ),
    ],
)
def test_rest(served: ModelServer, method: str, body: Any, answer: Any) -> None:
    status, _, text = rest(served, f"/v1/models/{MODEL}:{method}", json.dumps(body))
    assert (status, json.loads(text)) == (200, answer)


def test_rest_status(served: ModelServer) -> None:
    available = {
        "version": "123",
        "state": "AVAILABLE",
        "status": {"error_code": "OK", "error_message": ""},
    }
    for path in (f"/v1/models/{MODEL}", f"/v1/models/{MODEL}/versions/123"):
        status, _, text = rest(served, path)
        assert (status, json.loads(text)) == (200, {"model_version_status": [available]})


def test_rest_metadata(served: ModelServer) -> None:
    status, _, text = rest(served, f"/v1/models/{MODEL}/metadata")
    metadata = json.loads(text)
    assert status == 200
    assert metadata["model_spec"] == {"name": MODEL, "signature_name": "", "version": "123"}
    found = metadata["metadata"]["signature_def"]["signature_def"]
    assert len(found) == 5
    rows = [{"size": "-1", "name": ""}, {"size": "1", "name": ""}]
    y = {
        "dtype": "DT_FLOAT",
        "tensor_shape": {"dim": rows, "unknown_rank": False},
        "name": "y:0",
    }
    examples = {
        "dtype": "DT_STRING",
        "tensor_shape": {"dim": [], "unknown_rank": True},
        "name": "tf_example:0",
    }
    assert found["classify_x_to_y"] == {
        "inputs": {"inputs": examples},
        "outputs": {"scores": y},
        "method_name": "tensorflow/serving/classify",
        "defaults": {},
    }
    assert found[DEFAULT] == {
        "inputs": {"x": {**y, "name": "x:0"}},
        "outputs": {"y": y},
        "method_name": "tensorflow/serving/predict",
        "defaults": {},
    }


def test_prometheus_endpoint(served: ModelServer) -> None:
    status, _, text = rest(served, "/monitoring/prometheus/metrics")
    assert status == 200
    assert "# TYPE :tensorflow:serving:request_count counter" in text


# Documents: to the byte, where they show the server's own answer


def test_documented_status(served: ModelServer) -> None:
    assert rest(served, "/v1/models/half_plus_three")[::2] == (200, STATUS)


def test_documented_predict(served: ModelServer) -> None:
    body = '{"instances": [1.0,2.0,5.0]}'
    status, headers, text = rest(served, "/v1/models/half_plus_three:predict", body)
    assert status == 200
    assert headers["Content-Type"] == "application/json"
    # As the server prints it: the page was tidied.
    assert text == '{\n    "predictions": [3.5, 4.0, 5.5\n    ]\n}'
    assert json.loads(rest(served, "/v1/models/half_plus_two:predict", body)[2]) == {
        "predictions": [2.5, 3.0, 4.5]
    }


def test_documented_regress_by_a_signature_that_is_named_as_its_method(served: ModelServer) -> None:
    body = '{"signature_name": "tensorflow/serving/regress", "examples": [{"x": 1.0}, {"x": 2.0}]}'
    answer = rest(served, "/v1/models/half_plus_three:regress", body)
    assert answer[::2] == (200, '{\n    "results": [3.5, 4.0]\n}')


def test_documented_refusal(served: ModelServer) -> None:
    status, headers, text = rest(served, "/v1/models/half:predict", '{"instances": [1.0,5.0]}')
    assert status == 404
    assert headers["Content-Type"] == "application/json"
    assert text == '{ "error": "Servable not found for request: Latest(half)" }'


@pytest.mark.skipif(_PERF_ANALYZER is None, reason="perf_analyzer is not on PATH")
def test_perf_analyzer(served: ModelServer) -> None:
    arguments = [_PERF_ANALYZER, "-m", "half_plus_two_tf2", "--service-kind", "tfserving"]
    # For 20 requests; it wants the size of the open dimension.
    measurement = ["--shape", "x:1", "--measurement-mode", "count_windows"]
    measurement += ["--measurement-request-count", "20", "--stability-percentage", "999"]
    ended = subprocess.run(
        [*arguments, "-i", "grpc", "-u", served.grpc, *measurement],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "Throughput" in ended.stdout


# Files


def test_warmup_requests_ran(served: ModelServer) -> None:
    (line,) = [line for line in served.server.log.splitlines() if "warmup_requests_run" in line]
    assert "model=half_plus_two version=123 records=1" in line


def test_a_file_that_is_no_model_config(tmp_path: Path) -> None:
    file = tmp_path / "bad_model_config.txt"
    file.write_text("improperly formatted file")
    arguments = (f"--model_config_file={file}", "--port=1")
    with refused(*arguments, command="tfs", bind=()) as (code, log):
        assert code == 2
        assert "Error parsing text-format tensorflow.serving.ModelServerConfig" in log


def test_the_config_file_is_read_again(ask: Ask, served: ModelServer) -> None:
    assert ask(predict, served.grpc, SPARE, [2.0])[0] == {"y": [12.0]}
    others = {name: path for name, path in served.folders.items() if name != SPARE}
    replaced = served.file.with_suffix(".new")
    replaced.write_text(model_config(others))
    os.replace(replaced, served.file)

    def is_gone() -> bool:
        return rest(served, f"/v1/models/{SPARE}:predict", '{"inputs": [2.0]}')[0] == 404

    wait_until(is_gone, "the model that the file does not name any more")
    with pytest.raises(NotFound, match=SPARE):
        ask(predict, served.grpc, SPARE, [2.0])
    assert ask(predict, served.grpc, MODEL, [2.0])[0] == {"y": [3.0]}


def test_a_client_says_what_is_served(ask: Ask, served: ModelServer) -> None:
    # What is loaded already: tests/system/test_gateways.py has models that are not.
    gone = (SPARE, "two_constants")
    folders = {name: str(path) for name, path in served.folders.items() if name not in gone}
    assert ask(reload, served.grpc, folders) == (0, "")
    with pytest.raises(NotFound, match="two_constants"):
        ask(predict, served.grpc, "two_constants", [2.0])
    with pytest.raises(InvalidArgument, match="/nowhere"):
        ask(reload, served.grpc, {"nowhere": "/nowhere"})
    assert ask(predict, served.grpc, MODEL, [2.0])[0] == {"y": [3.0]}
