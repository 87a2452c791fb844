"""The examples run as they say."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.server import Server

ROOT = Path(__file__).parents[2]
_TENSORFLOW_SERVING = ROOT / "examples" / "tensorflow-serving"


def test_simulated_gpu_and_its_client() -> None:
    server = Server("examples/simulated_gpu.toml")
    # As from the checkout, with what the examples name.
    (server.working_folder / "examples").symlink_to(ROOT / "examples")
    with server:
        ended = subprocess.run(
            [sys.executable, ROOT / "examples" / "client.py", server.endpoint],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    found = re.fullmatch(r"(\{.*\}), (\d+) batches\n", ended.stdout)
    assert found, ended.stdout + ended.stderr
    outcomes = ast.literal_eval(found[1])
    assert sum(outcomes.values()) == 1000
    # Half a second's work in a second's time; a machine that is busy otherwise may be slower.
    assert set(outcomes) <= {"in time", "DEADLINE_EXCEEDED"}
    assert outcomes["in time"] / 32 <= int(found[2]) < 200


@pytest.mark.skipif(
    importlib.util.find_spec("tensorflow_serving") is None,
    reason="needs tensorflow-serving-api (--no-deps)",
)
def test_tensorflow_servings_files_and_clients(savedmodels: Path) -> None:
    rest, grpc = _free_ports(2)
    server = Server(
        *("--model_config_file=models.config", "--batching_parameters_file=batching.config"),
        *("--enable_batching", "--monitoring_config_file=monitoring.config"),
        *(f"--port={grpc}", f"--rest_api_port={rest}", "--host=127.0.0.1"),
        command="tfs",
    )
    _lay_out(server.working_folder, savedmodels)
    with _grpc_client(f"127.0.0.1:{grpc}") as said, server:
        answers = subprocess.run(
            [_TENSORFLOW_SERVING / "requests.sh", f"http://{server.rest}"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
        assert said() == "version 1: [2.5, 3.0, 4.5]\n"

    predictions, outputs, status, metadata = _json_values(answers)
    assert predictions == {"predictions": [3.5, 4.0, 5.5]}
    assert outputs == {"outputs": [2.5, 3.0, 4.5]}
    assert status["model_version_status"][0]["state"] == "AVAILABLE"
    assert metadata["model_spec"]["name"] == "half_plus_three"


def _lay_out(folder: Path, savedmodels: Path) -> None:
    """The example's files, with models that are there instead of those of make_models.py."""
    for file in _TENSORFLOW_SERVING.glob("*.config"):
        shutil.copy(file, folder)
    two_versions = savedmodels / "half_plus_two_2_versions"
    for model, number, version in [
        ("half_plus_two", 1, two_versions / "00000123"),
        ("half_plus_two", 2, two_versions / "00000124"),
        ("half_plus_three", 1, two_versions / "00000124"),
    ]:
        place = folder / "models" / model / str(number)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(version)


@contextlib.contextmanager
def _grpc_client(address: str) -> Iterator[Callable[[], str]]:
    """Started, and what it says in the end.

    TensorFlow, which it needs, is imported while the server imports it.
    """
    with subprocess.Popen(
        [sys.executable, _TENSORFLOW_SERVING / "grpc_client.py", address],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield lambda: _said(process)
        finally:
            process.kill()


def _said(process: subprocess.Popen[str]) -> str:
    said, errors = process.communicate(timeout=90)
    assert process.returncode == 0, errors
    return said


def _json_values(text: str) -> Iterator[Any]:
    """JSON values that stand one after the other."""
    decoder = json.JSONDecoder()
    while text := text.strip():
        value, end = decoder.raw_decode(text)
        yield value
        text = text[end:]


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)
        ]
        return [taken.getsockname()[1] for taken in sockets]
