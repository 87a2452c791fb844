"""What takes a known time and no processor: measures the harness and the server, and no card."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from batchyard.benchmarks.gpu.subjects import NETWORKS, SLEEP_S

Array = np.ndarray[Any, Any]


def build(name: str) -> Callable[[Array], Array]:
    """A function that takes so long for each row, and answers what its first numbers are."""
    row_s, classes = SLEEP_S[name], NETWORKS[name].classes

    def call(x: Array) -> Array:
        time.sleep(len(x) * row_s)
        return x.reshape(len(x), -1)[:, :classes].copy()

    return call


class SleeperLoop:
    """See ``bare_loop.Loop``."""

    def __init__(self, name: str, **_: Any) -> None:
        self.call = build(name)

    def put(self, host: Array) -> Array:
        return host

    def fetch(self, y: Array) -> Array:
        return y

    def synchronize(self, y: Array) -> None:
        """It is done when the call returns."""


def limit_memory(fraction: float) -> None:
    """It uses none of a card."""


def versions() -> dict[str, str]:
    """There is nothing to have a version."""
    return {"version": "none"}
