"""Makes the models of models.config, in ``models/`` of the working directory. Needs TensorFlow."""

from __future__ import annotations

import tensorflow as tf


def save(path: str, offset: float) -> None:
    """A SavedModel that answers half of ``x``, plus ``offset``."""
    module = tf.Module()
    module.offset = tf.Variable(offset)
    rows = tf.TensorSpec([None], tf.float32, "x")
    function = tf.function(lambda x: {"y": x * 0.5 + module.offset}).get_concrete_function(x=rows)
    tf.saved_model.save(module, path, signatures=function)


if __name__ == "__main__":
    save("models/half_plus_two/1", 2.0)
    save("models/half_plus_two/2", 2.5)
    save("models/half_plus_three/1", 3.0)
