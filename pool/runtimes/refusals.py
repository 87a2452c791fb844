"""What TensorFlow's errors become: the batch's error, or why a model does not load."""

from __future__ import annotations

import re
from typing import Any

import tensorflow as tf

from batchyard.pool.runtimes.base import ModelLoadError
from batchyard.pool.runtimes.operations import PACKAGES, missing_operation
from batchyard.pool.runtimes.out_of_memory import is_out_of_memory, too_large
from batchyard.wire.control import WorkerSettings
from batchyard.wire.errors import BatchyardError, InvalidArgument, ResourceExhausted, from_wire

# A function's errors say first where they were met.
_MARKS = re.compile(r"^(\{\{(function_node|node) [^}]*\}\}\s*)+")
# TensorFlow's allocator says RESOURCE_EXHAUSTED. But where a tensor is on its way to the card, or a
# library of NVIDIA's asks for memory itself, it says INTERNAL, and one of these.
_NO_MEMORY = re.compile(
    r"out of memory|CUDA_ERROR_OUT_OF_MEMORY|_ALLOC_FAILED|Dst tensor is not initialized", re.I
)
_NOT_COMPILED = re.compile(
    r"unsupported operations when trying to compile|compile-time constant|XLA"
)
_UNSUPPORTED = re.compile(r"(\w+) \(No registered '\w+' OpKernel for XLA")


# What a call raises that is the batch's error.
CALL_ERRORS = (tf.errors.OpError, UnicodeDecodeError)


def explain(model: str, signature: str, error: Any) -> BatchyardError:
    """One of ``CALL_ERRORS`` as the error of TensorFlow's code, without TensorFlow's own trace."""
    if isinstance(error, UnicodeDecodeError):
        # TensorFlow quotes the input in its message; when that is not UTF-8, its binding raises
        # this in place of the error itself.
        code, message = InvalidArgument.number, error.object.decode(errors="replace")
    else:
        code, message = error.error_code, error.message or ""
        if has_no_memory(error):
            code = ResourceExhausted.number
    # What follows the first node's mark is the trace; functions have marks before it, too.
    text = _MARKS.sub("", message.partition("\n\t [[")[0].strip())
    text = text.partition(" [Op:__inference_")[0].strip()
    return from_wire(code, f"model {model!r} signature {signature!r}: {text}")


def why_not_loaded(
    path: str, error: Exception, settings: WorkerSettings, way: str = ""
) -> ModelLoadError:
    """Why a SavedModel does not load, and what would be right.

    ``way`` says how it was loaded and what would have it loaded otherwise, if anything.
    """
    operation = missing_operation(error)
    if operation is not None:
        packages = ", ".join(PACKAGES.values())
        return ModelLoadError(
            f"{path}: operation {operation!r} is not TensorFlow's own: install the package that "
            f"has it beside TensorFlow; of {packages} those that are installed were imported"
        )
    if has_no_memory(error):
        return ModelLoadError(f"{path}: {too_large(settings)}: {first_line(error)}")
    return ModelLoadError(f"{path}: {way}{': ' if way else ''}{first_line(error)}")


def has_no_memory(error: Exception) -> bool:
    """Whether it says that there is no memory left, on the card or in the process."""
    if is_out_of_memory(error):
        return True
    return isinstance(error, tf.errors.InternalError) and bool(_NO_MEMORY.search(error.message))


def why_not_compiled(error: Exception) -> str | None:
    """What XLA says of a signature that it does not compile; None where the error is another."""
    if not isinstance(error, (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError)):
        return None
    operations = sorted(set(_UNSUPPORTED.findall(error.message)))
    if operations:
        noun = "operation" if len(operations) == 1 else "operations"
        return f"XLA does not have the {noun} {', '.join(operations)}"
    if isinstance(error, tf.errors.UnimplementedError) or _NOT_COMPILED.search(error.message):
        return _MARKS.sub("", first_line(error))
    return None


def first_line(error: Exception) -> str:
    """What it says first, or its kind where it says nothing."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
