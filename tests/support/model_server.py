"""``batchyard tfs``, started as TensorFlow Serving's tests and documents start it."""

from __future__ import annotations

import contextlib
import http.client
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from support.server import Server
from support.tf_records import write_records
from support.waiting import DEADLINE_S

from batchyard.wire.tensorflow_serving.messages import PredictionLog

KINDS = (
    "half_plus_two",
    "half_plus_three",
    "half_plus_two_tf2",
    "examples_tf2",
    "product",
    "two_constants",
    "half_plus_two_2_versions",
)
# Of which both versions are served.
LABELLED = "half_plus_two_2_versions"
_VERSIONS = """
    model_version_policy { specific { versions: 123 versions: 124 } }
    version_labels { key: "stable" value: 123 }
    version_labels { key: "canary" value: 124 }
"""
# Served as well, until a test removes it.
SPARE = "spare"
DEFAULT = "serving_default"


class ModelServer(NamedTuple):
    """A running server, its models' folders, the file that names them, and gRPC's UNIX socket."""

    server: Server
    folders: dict[str, Path]
    file: Path
    socket: Path

    @property
    def grpc(self) -> str:
        """Where gRPC is."""
        return self.server.grpc


@contextlib.contextmanager
def model_server(savedmodels: Path) -> Iterator[ModelServer]:
    """The server with all that its flags and files offer to a caller.

    ``half_plus_two`` has warm-up requests; requests for ``half_plus_three`` run in batches.
    """
    # A socket's path may have 107 bytes only, pytest's folders are long.
    with tempfile.TemporaryDirectory(prefix="batchyard-test-", dir="/tmp") as name:
        folder = Path(name)
        folders = {kind: folder / "models" / kind for kind in KINDS}
        for kind, path in folders.items():
            shutil.copytree(savedmodels / kind, path)
        folders[SPARE] = folders["product"]
        parameters = "max_batch_size { value: 128 } batch_timeout_micros { value: 0 }"
        version = folders["half_plus_three"] / "00000123"
        (version / "batching_params.pbtxt").write_text(parameters)
        warmup = folders["half_plus_two"] / "00000123" / "assets.extra"
        warmup.mkdir()
        write_records(warmup / "tf_serving_warmup_requests", [_warmup_request()])
        file = folder / "models.config"
        file.write_text(model_config(folders))
        monitoring = folder / "monitoring.config"
        monitoring.write_text("prometheus_config { enable: true }")
        arguments = (
            f"--port={free_port()}",
            f"--rest_api_port={free_port()}",
            "--host=127.0.0.1",
            f"--grpc_socket_path={folder / 'grpc.sock'}",
            "--rest_api_timeout_in_ms=5000",
            "--rest_api_enable_cors_support",
            f"--model_config_file={file}",
            "--model_config_file_poll_wait_seconds=1",
            f"--monitoring_config_file={monitoring}",
            "--enable_batching",
            "--enable_per_model_batching_parameters",
            "--grpc_channel_arguments=grpc.max_connection_age_ms=2000,grpc.lb_policy_name=grpclb",
        )
        with Server(*arguments, command="tfs") as server:
            yield ModelServer(server, folders, file, folder / "grpc.sock")


def _warmup_request() -> bytes:
    log = PredictionLog()
    request = log.regress_log.request
    request.model_spec.signature_name = "regress_x_to_y"
    example = request.input.example_list.examples.add()
    example.features.feature["x"].float_list.value.append(1.0)
    serialized: bytes = log.SerializeToString()
    return serialized


def model_config(folders: Mapping[str, Path]) -> str:
    """A --model_config_file."""
    entries = "".join(
        f'config {{ name: "{name}" base_path: "{path}" model_platform: "tensorflow"'
        f"{_VERSIONS if name == LABELLED else ''} }}\n"
        for name, path in folders.items()
    )
    return f"model_config_list: {{\n{entries}}}\n"


def rest(
    served: ModelServer,
    path: str,
    body: str | bytes | None = None,
    *,
    method: str | None = None,
    **headers: str,
) -> tuple[int, Mapping[str, str], str]:
    """Status, headers and body of a GET, or of a POST if there is a body."""
    connection = http.client.HTTPConnection(served.server.rest, timeout=DEADLINE_S)
    with contextlib.closing(connection):
        connection.request(method or ("GET" if body is None else "POST"), path, body, headers)
        response = connection.getresponse()
        return response.status, response.headers, response.read().decode()


def free_port() -> int:
    """A TCP port that nobody has: 0 is none to TensorFlow Serving."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
