"""TensorFlow Serving's REST interface: ``POST /v1/models/NAME:predict``.

https://www.tensorflow.org/tfx/serving/api_rest. It knows no deadlines: at a request's deadline the
client gives it up. Answers are not parsed beyond their status, which is what a load generator can
leave out; each request's first is looked at.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import numpy as np

from batchyard.benchmarks.load.plan import MixEntry
from batchyard.benchmarks.load.targets.address import read_address
from batchyard.benchmarks.load.targets.base import Array, Send, Target
from batchyard.benchmarks.load.targets.http_answers import Answer
from batchyard.benchmarks.load.targets.http_pool import HttpPool
from batchyard.benchmarks.load.targets.tensorflow_types import shape, wire_name
from batchyard.wire import errors
from batchyard.wire.signatures import DEFAULT_SIGNATURE, TensorSpec

_PORT = 8501
# TensorFlow Serving's table, ToHTTPStatusCode in model_servers/http_server.cc, backwards; where
# several codes share a status, the one that a caller meets.
_BY_STATUS: dict[int, type[errors.BatchyardError]] = {
    400: errors.InvalidArgument,
    401: errors.Unauthenticated,
    403: errors.PermissionDenied,
    404: errors.NotFound,
    409: errors.Aborted,
    429: errors.ResourceExhausted,
    499: errors.Cancelled,
    500: errors.Internal,
    501: errors.Unimplemented,
    503: errors.Unavailable,
    504: errors.DeadlineExceeded,
}
_OK = 200
_METADATA_S = 30.0


class RestTarget(Target):
    """``http://HOST:PORT``, perhaps with a path before ``/v1``."""

    def __init__(self, address: str) -> None:
        where = read_address(address, "http", _PORT)
        self._host = where.at
        self._base = where.path
        self._pool = HttpPool(where.host, where.port)

    async def connect(self) -> None:
        """See Target."""
        await self._pool.connect()

    async def inputs(self, entry: MixEntry) -> tuple[TensorSpec, ...]:
        """See Target."""
        request = self._request("GET", f"{_path(entry)}/metadata", b"")
        body = _body(await self._pool.call(request, _METADATA_S))
        try:
            signatures = json.loads(body)["metadata"]["signature_def"]["signature_def"]
            return _inputs(signatures, entry)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise errors.Unknown(
                f"{_path(entry)}/metadata is not TensorFlow Serving's metadata: {_said(body)}"
            ) from None

    def prepare(self, entry: MixEntry, inputs: Mapping[str, Array]) -> Send:
        """See Target."""
        body = json.dumps(predict_body(entry.signature, inputs)).encode()
        request = self._request("POST", f"{_path(entry)}:predict", body)
        seen = False

        async def send(timeout_s: float | None) -> object:
            nonlocal seen
            body = _body(await self._pool.call(request, timeout_s))
            if not seen:
                _check_outputs(body)
                seen = True
            return None

        return send

    async def close(self) -> None:
        """See Target."""
        await self._pool.close()

    def _request(self, method: str, path: str, body: bytes) -> bytes:
        head = (
            f"{method} {self._base}{path} HTTP/1.1\r\nHost: {self._host}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


def predict_body(signature: str, inputs: Mapping[str, Array]) -> dict[str, Any]:
    """The row format; where inputs have no rows in common, the column format."""
    head = {} if signature == DEFAULT_SIGNATURE else {"signature_name": signature}
    values = {name: _as_json(array) for name, array in inputs.items()}
    rows = {array.shape[0] if array.ndim else None for array in inputs.values()}
    if len(rows) != 1 or None in rows:
        return {**head, "inputs": values}
    if len(values) == 1:
        (only,) = values.values()
        return {**head, "instances": only}
    instances = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
    return {**head, "instances": instances}


def _as_json(array: Array) -> Any:
    if array.dtype.kind in "OSU":
        return _strings(array.tolist())
    if array.dtype.kind == "c":
        raise errors.InvalidArgument("TensorFlow Serving's REST interface takes no complex numbers")
    if array.dtype.kind not in "biuf":
        # bfloat16 and its like know no Python numbers of their own.
        array = array.astype(np.float32)
    return array.tolist()


def _strings(value: Any) -> Any:
    """Text as text, bytes that are none in base64."""
    if isinstance(value, list):
        return [_strings(item) for item in value]
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {"b64": base64.b64encode(value).decode()}
    return value


def _path(entry: MixEntry) -> str:
    path = f"/v1/models/{quote(entry.model, safe='')}"
    if entry.version is not None:
        return f"{path}/versions/{entry.version}"
    return path if entry.label is None else f"{path}/labels/{quote(entry.label, safe='')}"


def _inputs(signatures: dict[str, Any], entry: MixEntry) -> tuple[TensorSpec, ...]:
    if entry.signature not in signatures:
        known = ", ".join(map(repr, sorted(signatures))) or "none"
        raise errors.NotFound(
            f"model {entry.model!r} has no signature {entry.signature!r}; it has {known}"
        )
    return tuple(
        TensorSpec(name, wire_name(spec["dtype"]), _shape(spec["tensor_shape"]))
        for name, spec in sorted(signatures[entry.signature]["inputs"].items())
    )


def _shape(value: dict[str, Any]) -> tuple[int | None, ...] | None:
    # 64-bit numbers are texts in protobuf's JSON.
    sizes = [int(dim["size"]) for dim in value["dim"]]
    return shape(sizes, value["unknown_rank"])


def _body(answer: Answer) -> bytes:
    """The body of an answer that is none of the server's errors."""
    if answer.status == _OK:
        return answer.body
    error = _BY_STATUS.get(answer.status, errors.Unknown)
    raise error(f"HTTP {answer.status}: {_said(answer.body)}")


def _check_outputs(body: bytes) -> None:
    try:
        value = json.loads(body)
    except ValueError:
        value = None
    if not isinstance(value, dict) or not value.keys() & {"predictions", "outputs"}:
        raise errors.Unknown(f"the answer is not TensorFlow Serving's: {_said(body)}")


def _said(body: bytes) -> str:
    """What the server says, which is ``{"error": …}`` where it is TensorFlow Serving."""
    try:
        value = json.loads(body)
        return errors.shortened(str(value["error"]))
    except (ValueError, KeyError, TypeError):
        return errors.shortened(body.decode(errors="replace"))
