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
# TensorFlow counts some tensors' elements in 32 bits: of so many none has too many.
_BLOCKS = 16


def save(folder: str) -> None:
    """``mib``, float32 of shape (1, 1), in and out; at least one MiB is taken."""

    @tf.function(input_signature=[tf.TensorSpec((1, 1), tf.float32, "mib")])  # type: ignore[untyped-decorator]
    def allocate(mib: Any) -> dict[str, Any]:
        count = tf.maximum(tf.cast(tf.round(mib[0, 0]), tf.int32), 1)
        # From an input: what is constant would be made before.
        blocks = [
            tf.fill([(count + i) // _BLOCKS, _FLOATS_IN_MIB], mib[0, 0]) for i in range(_BLOCKS)
        ]
        # All are there before the first may go.
        with tf.control_dependencies(blocks):
            held = tf.reduce_max(tf.stack([tf.reduce_max(block) for block in blocks]))
        return {"mib": tf.reshape(held, (1, 1))}

    tf.saved_model.save(tf.Module(), folder, {"serving_default": allocate})


if __name__ == "__main__":
    save(sys.argv[1])
