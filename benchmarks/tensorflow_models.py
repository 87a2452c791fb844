"""Writes the SavedModels that benchmarks serve, in a process of its own.

``python -m batchyard.benchmarks.tensorflow_models NAME FOLDER``
"""

from __future__ import annotations

import os
import sys
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf

_MOBILENET_EDGE = 96


def mean(folder: str) -> None:
    """The mean of each image: float32 of shape (?, 224, 224, 3) in, (?,) out."""

    def function(x: Any) -> dict[str, Any]:
        return {"y": tf.reduce_mean(x, axis=(1, 2, 3))}

    _save(folder, tf.Module(), function, (224, 224, 3))


def mobilenet(folder: str) -> None:
    """MobileNetV2 with random weights: float32 of shape (?, 96, 96, 3) in, (?, 1000) out."""
    edge = _MOBILENET_EDGE
    network = tf.keras.applications.MobileNetV2(input_shape=(edge, edge, 3), weights=None)
    module = tf.Module()
    # Not the network itself: Keras 3 then saves every variable twice, and a session restores the
    # one that the signature does not read.
    module.weights = [variable.value for variable in network.variables]

    def function(x: Any) -> dict[str, Any]:
        return {"y": network(x, training=False)}

    _save(folder, module, function, (edge, edge, 3))


def _save(folder: str, module: Any, function: Any, row: tuple[int, ...]) -> None:
    spec = tf.TensorSpec((None, *row), tf.float32, name="x")
    signature = tf.function(function, autograph=False).get_concrete_function(spec)
    tf.saved_model.save(module, os.path.join(folder, "1"), signatures=signature)


_MODELS = {"mean": mean, "mobilenet": mobilenet}

if __name__ == "__main__":
    tf.get_logger().setLevel("ERROR")
    _MODELS[sys.argv[1]](sys.argv[2])
