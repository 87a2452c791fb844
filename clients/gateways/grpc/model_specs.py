"""``ModelSpec`` messages of requests and responses."""

from __future__ import annotations

from typing import Any

from batchyard.clients.gateways.inference import ModelSpec
from batchyard.wire.errors import InvalidArgument


def spec_of(request: Any) -> ModelSpec:
    """The spec of a request that must have one. Raises InvalidArgument."""
    if not request.HasField("model_spec"):
        raise InvalidArgument("Missing ModelSpec")
    return read_spec(request.model_spec)


def read_spec(message: Any) -> ModelSpec:
    """The spec that a message holds."""
    choice = message.WhichOneof("version_choice")
    return ModelSpec(
        message.name,
        message.version.value if choice == "version" else None,
        message.version_label if choice == "version_label" else None,
        message.signature_name,
    )


def write_spec(message: Any, spec: ModelSpec) -> None:
    """Says in a response which version and signature have answered."""
    message.name = spec.name
    if spec.version is not None:
        message.version.value = spec.version
    message.signature_name = spec.signature_name
