"""TensorFlow Serving's ``BatchingParameters``, as a table of ``[models.batching]``.

Meanings and defaults are those of its ``servables/tensorflow/bundle_factory_util`` and of
TensorFlow's ``kernels/batching_util/shared_batch_scheduler.h``.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from batchyard.wire.errors import InvalidArgument

# What holds where a message says nothing. num_batch_threads is as many as there are CPUs there;
# here it bounds how many batches run at once, and without it workers run as many as they can.
DEFAULTS = {
    "max_batch_size": 1000,
    "batch_timeout_micros": 0,
    "max_enqueued_batches": 10,
    "enable_large_batch_splitting": False,
}
# Who leaves max_batch_size away does not expect batches of 1000 images, nor the memory that they
# take: TensorFlow Serving does not try them before they come.
_WARMUP_MAX_BATCH_SIZE = 64
# Each with the least value that it may have.
_NUMBERS = {
    "max_batch_size": 1,
    "batch_timeout_micros": 0,
    "max_enqueued_batches": 1,
    "num_batch_threads": 1,
}


def batching_table(parameters: Any) -> dict[str, Any]:
    """The table that a ``BatchingParameters`` message means. Raises InvalidArgument."""
    table: dict[str, Any] = {"enable_batching": True, **DEFAULTS}
    for name, least in _NUMBERS.items():
        if parameters.HasField(name):
            table[name] = _at_least(least, name, getattr(parameters, name).value)
    if not parameters.HasField("max_batch_size"):
        table["warmup_max_batch_size"] = _WARMUP_MAX_BATCH_SIZE
    if parameters.pad_variable_length_inputs:
        table["pad_variable_length_inputs"] = True
    sizes = list(parameters.allowed_batch_sizes)
    if sizes and sizes[-1] != table["max_batch_size"]:
        raise InvalidArgument(
            "Last entry in allowed_batch_sizes must match max_batch_size; last entry was "
            f"{sizes[-1]}; expected {table['max_batch_size']}"
        )
    if parameters.enable_large_batch_splitting.value:
        table["enable_large_batch_splitting"] = True
        if parameters.HasField("max_execution_batch_size"):
            sizes = _cut(parameters.max_execution_batch_size.value, sizes, table)
    if any(a >= b for a, b in pairwise(sizes)) or min(sizes, default=1) < 1:
        raise InvalidArgument(f"allowed_batch_sizes must be increasing, from 1 on, not {sizes}")
    if sizes:
        table["allowed_batch_sizes"] = sizes
    return table


def _cut(most: int, sizes: list[int], table: dict[str, Any]) -> list[int]:
    """Batches of ``most`` rows: what goes beyond is for requests, which are split here at any
    size. Returns the sizes that are left."""
    _at_least(1, "max_execution_batch_size", most)
    if most > table["max_batch_size"]:
        raise InvalidArgument(
            f"max_execution_batch_size {most} must not be more than max_batch_size "
            f"{table['max_batch_size']}"
        )
    if sizes and most not in sizes:
        raise InvalidArgument(
            f"max_execution_batch_size {most} must be one of allowed_batch_sizes: {sizes}"
        )
    table["max_batch_size"] = most
    return [size for size in sizes if size <= most]


def _at_least(least: int, name: str, value: int) -> int:
    if value < least:
        raise InvalidArgument(f"{name} must be {least} or more, not {value}")
    return value
