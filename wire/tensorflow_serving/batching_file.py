"""TensorFlow Serving's batching parameters as keys of ``[models.batching]``.

For ``--batching_parameters_file``, and for the ``batching_params.pbtxt`` beside a SavedModel.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from batchyard.wire.errors import ConfigurationError
from batchyard.wire.tensorflow_serving.file_messages import BatchingParameters, parse

# What a version's folder calls it.
VERSION_FILE = "batching_params.pbtxt"

# What TensorFlow Serving takes for a key that its file does not have.
DEFAULTS: dict[str, Any] = {
    "max_batch_size": 1000,
    "batch_timeout_micros": 0,
    "max_enqueued_batches": 10,
    "enable_large_batch_splitting": False,
}


def read_batching_file(path: Path | str) -> dict[str, Any]:
    """The keys that a file of batching parameters sets.

    Raises ConfigurationError that names the file. Whether the values can be is for the
    configuration to say, which has the bounds.
    """
    try:
        return batching_table(parse(path, BatchingParameters))
    except ValueError as error:
        raise ConfigurationError(f"{path}: {error}") from None


def batching_table(parameters: Any) -> dict[str, Any]:
    """The keys that a ``BatchingParameters`` sets. Raises ValueError for what contradicts itself.

    ``thread_pool_name`` names threads that are not there, and nothing else follows from it.
    """
    table: dict[str, Any] = {"enable_batching": True}
    for key in (
        "max_batch_size",
        "batch_timeout_micros",
        "max_enqueued_batches",
        "num_batch_threads",
        "enable_large_batch_splitting",
    ):
        if parameters.HasField(key):
            table[key] = getattr(parameters, key).value
    if parameters.pad_variable_length_inputs:
        table["pad_variable_length_inputs"] = True
    sizes = list(parameters.allowed_batch_sizes)
    if sizes or "max_batch_size" in table:
        # Those of elsewhere would go with another max_batch_size.
        table["allowed_batch_sizes"] = sizes
    if table.get("enable_large_batch_splitting") and parameters.HasField(
        "max_execution_batch_size"
    ):
        _split(table, parameters.max_execution_batch_size.value)
    return table


def _split(table: dict[str, Any], max_execution_batch_size: int) -> None:
    """With splitting, ``max_batch_size`` bounds requests, and another key what runs together."""
    largest_request = table.get("max_batch_size", DEFAULTS["max_batch_size"])
    if max_execution_batch_size > largest_request:
        raise ValueError(
            f"max_execution_batch_size must be at most max_batch_size = {largest_request}, not "
            f"{max_execution_batch_size}"
        )
    table["max_batch_size"] = max_execution_batch_size
    table.setdefault("allowed_batch_sizes", [])
