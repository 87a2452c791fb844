"""How a row travels to a peer, and its output back: the leanest way that each one takes."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from batchyard.benchmarks.peers.http_load import Connection, HttpFailed, post

Array = np.ndarray[Any, np.dtype[np.float32]]


class Format(Protocol):
    """Rows as requests, and an answer as an output."""

    def requests(self, port: int, rows: Sequence[Array]) -> list[bytes]:
        """A request for each row, which is a batch of one; what they need of the server is set up.

        Raises HttpFailed.
        """

    def output(self, body: bytes) -> Array:
        """The output of an answer, flat. Raises HttpFailed."""


@dataclass(frozen=True, slots=True)
class Octets:
    """The row's bytes are the body, the output's bytes the answer."""

    path: str

    def requests(self, port: int, rows: Sequence[Array]) -> list[bytes]:
        """See Format."""
        return [post(self.path, row.tobytes()) for row in rows]

    def output(self, body: bytes) -> Array:
        """See Format."""
        return _floats(body)


@dataclass(frozen=True, slots=True)
class Json:
    """TensorFlow Serving's REST, by rows."""

    path: str

    def requests(self, port: int, rows: Sequence[Array]) -> list[bytes]:
        """See Format."""
        return [post(self.path, json.dumps({"instances": row.tolist()}).encode()) for row in rows]

    def output(self, body: bytes) -> Array:
        """See Format."""
        try:
            return np.array(json.loads(body)["predictions"], np.float32).ravel()
        except (ValueError, LookupError, TypeError) as error:
            raise HttpFailed(f"an answer without predictions: {error!r}") from None


class Triton:
    """The binary extension of the protocol that KServe, Triton and others share.

    https://github.com/kserve/open-inference-protocol, and Triton's extension_binary_data.md:
    a body is a JSON header, whose length an HTTP header tells, and the tensors' bytes.
    """

    def requests(self, port: int, rows: Sequence[Array]) -> list[bytes]:
        """See Format."""
        return [_infer(row, {"binary_data_size": row.nbytes}, row.tobytes()) for row in rows]

    def output(self, body: bytes) -> Array:
        """See Format."""
        # Servers pad the header's length or not: where it ends is seen from the first byte on.
        header, end = json.JSONDecoder().raw_decode(body.decode("latin-1"))
        nbytes = header["outputs"][0]["parameters"]["binary_data_size"]
        if len(body) < end + nbytes:
            raise HttpFailed(f"an answer of {len(body)} bytes where {end + nbytes} are promised")
        return _floats(body[-nbytes:])


class TritonSharedMemory(Triton):
    """The rows lie in a system shared memory region, which requests point into.

    Triton's extension_shared_memory.md; outputs come back in the answers.
    """

    _REGION = "rows"

    def requests(self, port: int, rows: Sequence[Array]) -> list[bytes]:
        """See Format."""
        self._register(port, b"".join(row.tobytes() for row in rows))
        found = []
        offset = 0
        for row in rows:
            where = {
                "shared_memory_region": self._REGION,
                "shared_memory_offset": offset,
                "shared_memory_byte_size": row.nbytes,
            }
            found.append(_infer(row, where, b""))
            offset += row.nbytes
        return found

    def _register(self, port: int, content: bytes) -> None:
        path = Path("/dev/shm") / f"batchyard-{os.getpid()}-{self._REGION}"
        region = f"/v2/systemsharedmemory/region/{self._REGION}"
        body = {"key": f"/{path.name}", "offset": 0, "byte_size": len(content)}
        try:
            path.write_bytes(content)
            with Connection(port) as connection:
                connection.call(post(f"{region}/unregister", b""))
                connection.call(post(f"{region}/register", json.dumps(body).encode()))
        finally:
            # The server has it mapped; its name is not needed any more.
            path.unlink(missing_ok=True)


def _infer(row: Array, parameters: dict[str, Any], binary: bytes) -> bytes:
    tensor = {
        "name": "x",
        # Triton's rows have at least one dimension.
        "shape": row.shape if row.ndim > 1 else (*row.shape, 1),
        "datatype": "FP32",
        "parameters": parameters,
    }
    output = {"name": "y", "parameters": {"binary_data": True}}
    header = json.dumps({"inputs": [tensor], "outputs": [output]}).encode()
    length = f"Inference-Header-Content-Length: {len(header)}"
    return post("/v2/models/model/infer", header + binary, [length])


def _floats(body: bytes) -> Array:
    if len(body) % 4:
        raise HttpFailed(f"an answer of {len(body)} bytes is no float32 output")
    return np.frombuffer(body, np.float32)
