"""Bare TensorFlow: a SavedModel's signature, called in a loop with tensors on the card."""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

_MIB = 1024 * 1024


class TensorflowLoop:
    """See ``bare_loop.Loop``. ``path``: the SavedModel's folder with its version 1."""

    def __init__(self, path: str, xla: bool, **_: Any) -> None:
        # It holds the variables: as long as its signature is called, they stay.
        self._model = tf.saved_model.load(os.path.join(path, "1"))
        signature = self._model.signatures["serving_default"]
        self._signature = tf.function(
            lambda x: signature(x=x)["y"], jit_compile=xla or None, autograph=False
        )

    def put(self, host: np.ndarray[Any, Any]) -> Any:
        return tf.constant(host)

    def call(self, x: Any) -> Any:
        return self._signature(x)

    def fetch(self, y: Any) -> np.ndarray[Any, Any]:
        array: np.ndarray[Any, Any] = y.numpy()
        return array

    def synchronize(self, y: Any) -> None:
        # Kernels of a card run in order: the last answer is there when all are.
        y.numpy()


def limit_memory(fraction: float) -> None:
    """Has this process use no more of the card than such a share, as a worker is told."""
    for card in tf.config.list_physical_devices("GPU"):
        total = _total_mb()
        if total:
            limit = tf.config.LogicalDeviceConfiguration(memory_limit=int(fraction * total))
            tf.config.set_logical_device_configuration(card, [limit])


def _total_mb() -> int:
    from batchyard.pool.inventory import read_inventory, visible_devices

    devices = visible_devices(read_inventory(), os.environ).devices
    return devices[0].memory_mb if devices else 0


def versions() -> dict[str, str]:
    """What TensorFlow is, and what it was built with; ``device`` is the card that it sees."""
    build = tf.sysconfig.get_build_info()
    found = {"version": tf.__version__}
    for key in ("cuda_version", "cudnn_version"):
        if key in build:
            found[key.removesuffix("_version")] = str(build[key])
    cards = tf.config.list_physical_devices("GPU")
    if cards:
        details = tf.config.experimental.get_device_details(cards[0])
        found["device"] = str(details.get("device_name", cards[0].name))
    return found
