"""TensorFlow: a SavedModel that takes as many MiB of the card as its input says.

``python -m batchyard.benchmarks.gpu.models.tensorflow_allocation FOLDER``
"""

from __future__ import annotations

import os
import sys
from typing import Any

# Writing it takes no card.
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf

_FLOATS_IN_MIB = 1 << 18


def save(folder: str) -> None:
    """``mib``, float32 of shape (1, 1), in and out; at least one MiB is taken."""

    @tf.function(input_signature=[tf.TensorSpec((1, 1), tf.float32, "mib")])  # type: ignore[untyped-decorator]
    def allocate(mib: Any) -> dict[str, Any]:
        count = tf.maximum(tf.cast(tf.round(mib[0, 0]), tf.int32), 1)
        # From an input, so that it is no constant, which would be made before.
        block = tf.fill([count, _FLOATS_IN_MIB], mib[0, 0])
        # Of all of it, lest a compiler makes only what is looked at.
        return {"mib": tf.reshape(tf.reduce_max(block), (1, 1))}

    tf.saved_model.save(tf.Module(), folder, {"serving_default": allocate})


if __name__ == "__main__":
    save(sys.argv[1])
