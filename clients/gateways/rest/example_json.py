"""Bodies of ``:classify`` and ``:regress``: examples, as objects of features.

The format: https://www.tensorflow.org/tfx/serving/api_rest#classify_and_regress_api
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from batchyard.clients.gateways.rest import json_layout, json_strings
from batchyard.clients.gateways.rest.json_document import (
    json_type,
    parse_object,
    printable,
    quoted,
)
from batchyard.clients.gateways.rest.predict_json import signature_name
from batchyard.clients.inputs import Array
from batchyard.wire.errors import InvalidArgument
from batchyard.wire.tensorflow_serving.example_requests import check_context
from batchyard.wire.tensorflow_serving.messages import Example

_CONTEXT = "context"
_EXAMPLES = "examples"
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_INT64_MAX = (1 << 63) - 1
# How TensorFlow Serving's errors call the lists of a feature.
_KINDS = {"bytes_list": "bytes", "float_list": "float", "int64_list": "int64"}


class ExamplesRequest(NamedTuple):
    """What a body asks for. ``examples``: serialized tf.Example, an object array of bytes."""

    signature_name: str
    examples: Array


def decode_examples(body: bytes) -> ExamplesRequest:
    """The examples of a request, each with the context's features that it has not itself.

    Raises InvalidArgument.
    """
    document = parse_object(body)
    signature = signature_name(document)
    context = b""
    if _CONTEXT in document:
        context = _serialized(document[_CONTEXT])
    values = _values(document)
    check_context(len(context), len(values))
    examples = np.empty(len(values), object)
    # One message after another is both in one, and of a feature in both the last counts.
    examples[:] = [context + _serialized(value) for value in values]
    return ExamplesRequest(signature, examples)


def encode_classifications(classes: Array | None, scores: Array | None) -> bytes:
    """``{"results": [[[label, score], …], …]}`` of ``(n, k)`` arrays.

    Without labels they are ``""``, without scores 0. Raises InvalidArgument without any.
    """
    labels = _labels(classes)
    numbers = None if scores is None else _rows(scores)
    rows = labels or [[b'""'] * len(row) for row in numbers or []]
    if not rows:
        raise InvalidArgument("Cannot convert empty ClassificationResults to JSON")
    numbers = numbers or [[b"0.0"] * len(row) for row in rows]
    texts = [
        b"[" + b", ".join([b"[%b, %b]" % pair for pair in zip(*row, strict=True)]) + b"]"
        for row in zip(rows, numbers, strict=True)
    ]
    return b'{\n    "results": [' + b", ".join(texts) + b"\n    ]\n}"


def encode_regressions(values: Array) -> bytes:
    """``{"results": [value, …]}`` of an ``(n,)`` array. Raises InvalidArgument when n is 0."""
    if not values.size:
        raise InvalidArgument("Cannot convert empty RegressionResults to JSON")
    texts = json_layout.number_texts(values.astype(np.float32, copy=False))
    return b'{\n    "results": [' + b", ".join(texts) + b"]\n}"


def _labels(classes: Array | None) -> list[list[bytes]] | None:
    if classes is None:
        return None
    return [[json_strings.text(label) for label in row] for row in classes.tolist()]


def _rows(scores: Array) -> list[list[bytes]]:
    texts = json_layout.number_texts(scores.astype(np.float32, copy=False))
    size = scores.shape[1]
    return [texts[row * size : (row + 1) * size] for row in range(scores.shape[0])]


def _values(document: dict[str, Any]) -> Sequence[Any]:
    shown = f"JSON Value: {quoted(document)}"
    if _EXAMPLES not in document:
        raise InvalidArgument(
            f"{shown} When method is classify, key '{_EXAMPLES}' is expected and was not found"
        )
    values = document[_EXAMPLES]
    if not isinstance(values, list):
        raise InvalidArgument(f"{shown} Expecting '{_EXAMPLES}' value to be an list/array")
    if not values:
        raise InvalidArgument(f"{shown} '{_EXAMPLES}' value is an empty array")
    return values


def _serialized(value: Any) -> bytes:
    if not isinstance(value, dict):
        raise InvalidArgument(f"Example must be JSON object but got JSON {json_type(value)}")
    example = Example()
    for name, content in value.items():
        try:
            feature = example.features.feature[name]
        except (UnicodeEncodeError, ValueError):
            raise InvalidArgument(
                f"Feature: {printable(name)} has a name that is no UTF-8"
            ) from None
        _fill(feature, name, content if isinstance(content, list) else [content])
    serialized: bytes = example.SerializeToString()
    return serialized


def _fill(feature: Any, name: str, values: list[Any]) -> None:
    """All values of a feature are of one kind, which the first one says."""
    kind = None
    elements = []
    for value in values:
        of, element = _element(name, value)
        if kind not in (None, of):
            raise InvalidArgument(
                f"Unexpected element type in feature: {printable(name)} expecting type: "
                f"{_KINDS[kind]}"
            )
        kind = of
        elements.append(element)
    if kind is not None:
        getattr(feature, kind).value.extend(elements)


def _element(name: str, value: Any) -> tuple[str, bytes | float | int]:
    if isinstance(value, str) or json_strings.is_base64(value):
        return "bytes_list", json_strings.from_json(value)
    if isinstance(value, int):
        if value > _INT64_MAX:
            raise InvalidArgument(
                f"Feature: {printable(name)} has uint64 element. Only int64 is supported."
            )
        return "int64_list", int(value)
    if isinstance(value, float):
        if math.isfinite(value) and abs(value) > _FLOAT32_MAX:
            raise InvalidArgument(
                f"Cannot convert JSON value: {quoted(value)} to float without loss of precision."
            )
        return "float_list", value
    raise InvalidArgument(
        f"Feature: {printable(name)} has element with unexpected JSON type: {json_type(value)}"
    )
