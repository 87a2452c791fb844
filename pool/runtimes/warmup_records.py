"""Reads the file of requests that a SavedModel brings along for its own warm-up."""

from __future__ import annotations

import os
from collections.abc import Iterator

import tensorflow as tf

from batchyard.pool.runtimes.base import ModelLoadError

_FILE = os.path.join("assets.extra", "tf_serving_warmup_requests")


def warmup_file(folder: str) -> str | None:
    """Where it is, if the SavedModel in ``folder`` has one."""
    path = os.path.join(folder, _FILE)
    return path if os.path.exists(path) else None


def read_records(path: str) -> Iterator[bytes]:
    """The records of a TFRecord file. Raises ModelLoadError."""
    try:
        yield from tf.compat.v1.io.tf_record_iterator(path)
    except tf.errors.DataLossError as error:
        raise ModelLoadError(f"{path}: {error.message}; it must be a TFRecord file") from error
    except (tf.errors.OpError, OSError) as error:
        raise ModelLoadError(f"{path}: {error}") from error
