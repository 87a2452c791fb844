"""Writes the SavedModels that are measured, in a process of its own.

``python -m batchyard.benchmarks.gpu.models.tensorflow_models NAME PRECISION FOLDER``
"""

from __future__ import annotations

import os
import sys
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# A graph is written, nothing runs: no card is needed for that, and none taken.
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import tensorflow as tf

from batchyard.benchmarks.gpu.subjects import NETWORKS

_HIDDEN = (512, 512)


def save(name: str, precision: str, folder: str) -> None:
    """Version 1 in the folder: ``x``, float32 rows, in; ``y``, float32, out."""
    if precision == "float16":
        tf.keras.mixed_precision.set_global_policy("mixed_float16")
    tf.keras.utils.set_random_seed(0)
    network = _resnet50() if name == "resnet50" else _mlp()
    module = tf.Module()
    # Not the network itself: Keras 3 then saves every variable twice, and a session restores the
    # one that the signature does not read.
    module.weights = [variable.value for variable in network.variables]

    def function(x: Any) -> dict[str, Any]:
        return {"y": tf.cast(network(x, training=False), tf.float32)}

    spec = tf.TensorSpec((None, *NETWORKS[name].row), tf.float32, name="x")
    signature = tf.function(function, autograph=False).get_concrete_function(spec)
    tf.saved_model.save(module, os.path.join(folder, "1"), signatures=signature)


def _resnet50() -> Any:
    network = NETWORKS["resnet50"]
    return tf.keras.applications.ResNet50(
        input_shape=network.row, weights=None, classifier_activation=None
    )


def _mlp() -> Any:
    layers = [tf.keras.layers.Dense(size, activation="relu") for size in _HIDDEN]
    network = NETWORKS["mlp"]
    return tf.keras.Sequential(
        [tf.keras.Input(network.row), *layers, tf.keras.layers.Dense(network.classes)]
    )


if __name__ == "__main__":
    tf.get_logger().setLevel("ERROR")
    save(*sys.argv[1:])
