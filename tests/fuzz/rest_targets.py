"""What the REST gateway decodes: bodies of predictions, and of examples."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from fuzz.documents import NotADocument, fields, list_of, refused

from batchyard.clients.gateways.rest import predict_json
from batchyard.clients.gateways.rest.example_json import decode_examples
from batchyard.clients.gateways.rest.json_document import parse_object
from batchyard.clients.gateways.rest.model_json import encode_error
from batchyard.clients.gateways.rest.predict_json import PredictRequest
from batchyard.wire import dtypes
from batchyard.wire.errors import BatchyardError, InvalidArgument, Unimplemented
from batchyard.wire.signatures import TensorSpec
from batchyard.wire.tensorflow_serving.messages import Example

# Enough for numbers to be read straight from the text.
_MORE = b" " * 512


def check_rest_predict(document: Any) -> None:
    """``[body, or what it says, dtypes of the inputs]``."""
    given, kinds = fields(document, object, list)
    specs = {
        name: TensorSpec(name, dtype, None)
        for name, dtype in zip("xyz", list_of(str, kinds, 3), strict=False)
        if dtypes.is_known(dtype)
    }
    body = _body(given)
    decoded = _decoded(body, specs)
    assert _same(decoded, _decoded(body + _MORE, specs))
    if decoded is None:
        return
    assert decoded.inputs.keys() == specs.keys()
    for name, array in decoded.inputs.items():
        assert array.dtype == dtypes.to_numpy(specs[name].dtype)
        assert array.dtype != object or all(type(item) is bytes for item in array.flat)
    _check_answer(decoded, specs)


def _decoded(body: bytes, specs: Mapping[str, TensorSpec]) -> PredictRequest | None:
    try:
        return predict_json.decode_predict(body, lambda _: specs)
    except BatchyardError as error:
        _check_refusal(error, InvalidArgument, Unimplemented)
        return None


def _same(one: PredictRequest | None, other: PredictRequest | None) -> bool:
    if one is None or other is None:
        return one is other
    return one[::2] == other[::2] and all(
        np.array_equal(array, other.inputs[name], equal_nan=array.dtype.kind not in "Ob")
        for name, array in one.inputs.items()
    )


def _check_answer(decoded: PredictRequest, specs: Mapping[str, TensorSpec]) -> None:
    """The answer that has what was asked for is JSON, and asks for the same."""
    answer = predict_json.encode_predict(decoded.inputs, is_row=decoded.is_row)
    asks = answer.replace(b'"predictions"', b'"instances"', 1).replace(b'"outputs"', b'"inputs"', 1)
    assert list(parse_object(answer)) == ["predictions" if decoded.is_row else "outputs"]
    again = _decoded(asks, specs)
    assert again is not None
    assert _same(PredictRequest("", decoded.inputs, decoded.is_row), again)


def check_rest_examples(document: Any) -> None:
    """``[body, or what it says]``."""
    (given,) = fields(document, object)
    try:
        request = decode_examples(_body(given))
    except BatchyardError as error:
        _check_refusal(error, InvalidArgument)
        return
    assert request.examples.ndim == 1
    assert len(request.examples) >= 1
    for example in request.examples:
        assert type(example) is bytes
        Example.FromString(example)


def _check_refusal(error: BatchyardError, *classes: type[BatchyardError]) -> None:
    refused(error, *classes)
    assert len(error.message) < 4000
    assert set(json.loads(encode_error(error.message))) == {"error"}


def _body(given: Any) -> bytes:
    if isinstance(given, bytes):
        return given
    try:
        return json.dumps(given).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise NotADocument from error
