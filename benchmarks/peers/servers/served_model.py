"""What the peers' servers share: their command line, and the model that each of them serves.

    python SERVER.py --model SAVEDMODEL --port N --max-batch-size N --batch-timeout-micros N

These scripts run in the peers' own environments, where Batchyard is not installed: they import
nothing of it. A request's body is the bytes of one float32 row, the answer's those of its output.
A timeout of 0 asks for the shortest way to an answer: a request waits for no company.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any

import numpy as np


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """``model``, ``port``, ``max_batch_size`` and ``batch_timeout_micros``, of this command line
    if no other is given."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--model", required=True, help="Folder of a SavedModel.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--max-batch-size", type=int, required=True)
    parser.add_argument("--batch-timeout-micros", type=int, required=True)
    # Some servers take arguments of their own from the same command line.
    return parser.parse_known_args(words)[0]


class ServedModel:
    """A SavedModel with an input ``x`` and an output ``y``, called as a bare loop would.

    TensorFlow has one thread inside an operation and one for operations. It is imported here,
    so that a server's other processes do without it.
    """

    def __init__(self, folder: str) -> None:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        self._constant = tf.constant
        self._loaded = tf.saved_model.load(folder)
        self._signature = self._loaded.signatures["serving_default"]
        self.row_shape = tuple(self._signature.structured_input_signature[1]["x"].shape[1:])
        self.output_shape = tuple(self._signature.structured_outputs["y"].shape[1:])
        self.run(np.zeros((1, *self.row_shape), np.float32))

    def run(self, batch: Any) -> Any:
        """A batch of rows in, a row of output for each out."""
        return self._signature(x=self._constant(batch))["y"].numpy()

    def answers(self, bodies: Sequence[bytes]) -> list[bytes]:
        """Requests' bodies in, answers' bodies out: a row each, which run together."""
        rows = np.frombuffer(b"".join(bodies), np.float32).reshape(-1, *self.row_shape)
        outputs = self.run(rows).tobytes()
        nbytes = len(outputs) // len(bodies)
        return [outputs[i : i + nbytes] for i in range(0, len(outputs), nbytes)]
