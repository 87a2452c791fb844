"""Whether a server can take requests, from what its broker says of itself. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def obstacles(metrics: Mapping[str, Any] | None) -> list[str]:
    """Why requests should go elsewhere, in words; empty when the server is ready.

    It is ready when each model has a version that is AVAILABLE, and a worker serves. A version that
    is loaded while another serves, or failed to, does not count.
    """
    if metrics is None:
        return ["the broker does not answer"]
    found = []
    if metrics["broker"]["draining"]:
        found.append("the server is shutting down")
    if not any(worker["state"] in ("READY", "BUSY") for worker in metrics["workers"]):
        found.append("no worker is READY")
    versions: dict[str, list[Mapping[str, Any]]] = {}
    for model in metrics["models"]:
        versions.setdefault(model["name"], []).append(model)
    for name, models in versions.items():
        if all(model["state"] != "AVAILABLE" for model in models):
            states = ", ".join(_described(model) for model in models)
            found.append(f"model {name!r} is not AVAILABLE: {states}")
    return found


def _described(model: Mapping[str, Any]) -> str:
    why = f" ({model['error']})" if model["error"] else ""
    return f"version {model['version']} is {model['state']}{why}"
