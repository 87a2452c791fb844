"""Sleepers as ``python`` models: ``batchyard.benchmarks.gpu.models.sleeper_served:NAME``."""

from __future__ import annotations

from typing import Any

from batchyard.benchmarks.gpu.models.sleeper_networks import build

_RESNET50, _MLP = build("resnet50"), build("mlp")


def resnet50_float32(inputs: dict[str, Any]) -> dict[str, Any]:
    """As many images a second as ResNet50 has on a card."""
    return {"y": _RESNET50(inputs["x"])}


def mlp_float32(inputs: dict[str, Any]) -> dict[str, Any]:
    """Short batches of small rows."""
    return {"y": _MLP(inputs["x"])}
