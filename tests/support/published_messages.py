"""The messages that tensorflow-serving-api publishes, as a ``FileDescriptorSet``.

    python -P tests/support/published_messages.py > wire/tensorflow_serving/published.binpb

Needs TensorFlow and tensorflow-serving-api (pip install --no-deps), and imports no more of
TensorFlow than its messages.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from typing import Any

from google.protobuf import descriptor_pb2

_ROOTS = (
    "apis.prediction_service_pb2",
    "apis.model_service_pb2",
    "apis.prediction_log_pb2",
    "config.model_server_config_pb2",
)


def is_installed() -> bool:
    """Whether there is something to collect from."""
    return all(importlib.util.find_spec(name) for name in ("tensorflow_serving", "tensorflow"))


def collect() -> descriptor_pb2.FileDescriptorSet:
    """The files of all messages, each after those that it needs."""
    leave_tensorflow_out()
    files: dict[str, descriptor_pb2.FileDescriptorProto] = {}
    for root in _ROOTS:
        _add(importlib.import_module(f"tensorflow_serving.{root}").DESCRIPTOR, files)
    return descriptor_pb2.FileDescriptorSet(file=files.values())


def leave_tensorflow_out() -> None:
    """Has TensorFlow's messages be imported without TensorFlow, which takes seconds.

    For a process that needs nothing else of it.
    """
    spec = importlib.util.find_spec("tensorflow")
    assert spec is not None
    package = types.ModuleType("tensorflow")
    package.__path__ = list(spec.submodule_search_locations or [])
    sys.modules["tensorflow"] = package


def _add(file: Any, files: dict[str, descriptor_pb2.FileDescriptorProto]) -> None:
    if file.name in files:
        return
    for needed in file.dependencies:
        _add(needed, files)
    described = descriptor_pb2.FileDescriptorProto()
    file.CopyToProto(described)
    files[file.name] = described


if __name__ == "__main__":
    sys.stdout.buffer.write(collect().SerializeToString(deterministic=True))
