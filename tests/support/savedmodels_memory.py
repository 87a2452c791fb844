"""Exports SavedModels that need much memory: ``python tests/support/savedmodels_memory.py OUTDIR``.

They are apart from ``savedmodels.py`` because no server of the tests is to serve them all along.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import numpy as np
import tensorflow as tf

# Of its variable, and of its constant as much again.
HEAVY_NBYTES = 24 << 20


def _save(path: Path, function: Callable[..., Any], spec: Any, variable: Any = None) -> None:
    module = tf.Module()
    module.variable = variable
    signature = tf.function(function, autograph=False).get_concrete_function(spec)
    tf.saved_model.save(module, str(path), signatures=signature)


def hungry(path: Path) -> None:
    """Needs ``4 * max(n)`` bytes while it runs."""
    spec = tf.TensorSpec((None,), tf.int64, "n")

    def run(n: Any) -> Any:
        return {"y": tf.cast(n, tf.float32) * tf.reduce_max(tf.ones((tf.reduce_max(n),)))}

    _save(path, run, spec)


def heavy(path: Path) -> None:
    """Holds much: a variable and a constant."""
    values = np.random.default_rng(1).random(HEAVY_NBYTES // 4, np.float32)
    variable = tf.Variable(values)
    constant = tf.constant(values[::-1].copy())
    spec = tf.TensorSpec((None,), tf.float32, "x")
    _save(path, lambda x: {"y": x + tf.reduce_sum(variable * constant)}, spec, variable)


if __name__ == "__main__":
    tf.get_logger().setLevel("ERROR")
    for export in (hungry, heavy):
        export(Path(sys.argv[1]) / export.__name__)
