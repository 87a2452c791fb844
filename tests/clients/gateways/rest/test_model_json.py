"""Answers about models, byte by byte, and errors."""

from __future__ import annotations

import json

import pytest
from google.protobuf import json_format

from batchyard.clients.gateways.rest.model_json import (
    encode_error,
    encode_metadata,
    encode_statuses,
)
from batchyard.wire.tensorflow_serving.messages import SignatureDefMap


def test_statuses_as_tensorflow_serving_documents_them() -> None:
    text = encode_statuses([(123, "AVAILABLE", "OK", ""), (7, "END", "NOT_FOUND", 'no "x"')])
    assert text.decode() == (
        '{\n "model_version_status": [\n'
        '  {\n   "version": "123",\n   "state": "AVAILABLE",\n'
        '   "status": {\n    "error_code": "OK",\n    "error_message": ""\n   }\n  },\n'
        '  {\n   "version": "7",\n   "state": "END",\n'
        '   "status": {\n    "error_code": "NOT_FOUND",\n    "error_message": "no \\"x\\""\n   }\n'
        "  }\n ]\n}\n"
    )
    assert encode_statuses([]) == b'{\n "model_version_status": []\n}\n'
    for state in ("START", "LOADING", "AVAILABLE", "UNLOADING", "END"):
        assert state.encode() in encode_statuses([(1, state, "UNAVAILABLE", "")])


def signatures() -> SignatureDefMap:
    made = SignatureDefMap()
    predict = made.signature_def["serving_default"]
    predict.method_name = "tensorflow/serving/predict"
    x = predict.inputs["x"]
    x.name, x.dtype = "x:0", 1
    x.tensor_shape.dim.add(size=-1)
    x.tensor_shape.dim.add(size=2, name="<two>")
    predict.outputs["y"].name = "y:0"
    predict.outputs["y"].tensor_shape.unknown_rank = True
    made.signature_def["empty"].SetInParent()
    return made


def test_metadata_with_defaults_and_oneofs_last() -> None:
    text = encode_metadata("m", 123, signatures()).decode()
    assert text.startswith(
        '{\n"model_spec":{\n "name": "m",\n "signature_name": "",\n "version": "123"\n}\n,\n'
        '"metadata": {"signature_def": {\n "signature_def": {\n  "empty": {\n   "inputs": {},\n'
    )
    assert text.endswith("\n  }\n }\n}\n}\n}\n")
    found = json.loads(text)["metadata"]["signature_def"]["signature_def"]
    assert list(found) == ["empty", "serving_default"]
    assert found["serving_default"]["method_name"] == "tensorflow/serving/predict"
    x = found["serving_default"]["inputs"]["x"]
    assert list(x) == ["dtype", "tensor_shape", "name"]
    assert x["dtype"] == "DT_FLOAT"
    dims = [{"size": "-1", "name": ""}, {"size": "2", "name": "<two>"}]
    assert x["tensor_shape"] == {"dim": dims, "unknown_rank": False}
    assert '"\\u003ctwo\\u003e"' in text
    assert found["serving_default"]["outputs"]["y"]["tensor_shape"] == {
        "dim": [],
        "unknown_rank": True,
    }


def test_metadata_can_be_read_back() -> None:
    text = encode_metadata("m", 1, signatures())
    read = json_format.ParseDict(json.loads(text)["metadata"]["signature_def"], SignatureDefMap())
    assert read == signatures()


@pytest.mark.parametrize("message", ["", 'it\'s "x"\n\t\\', "\u00e9 \0", "a\ud800b", "\udcff"])
def test_errors_are_json_whatever_they_say(message: str) -> None:
    text = encode_error(message)
    assert text.startswith(b'{ "error": "')
    assert text.endswith(b'" }')
    want = message.encode(errors="backslashreplace").decode()
    assert json.loads(text) == {"error": want}
