"""Calls one signature of a loaded SavedModel as a function, at the least price."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context, execute

from batchyard.pool.runtimes.base import Array
from batchyard.pool.runtimes.compilation import compiled
from batchyard.wire.errors import Internal
from batchyard.wire.signatures import SignatureSpec

# Of these TensorFlow takes no memory by DLPack.
_NOT_BY_DLPACK = ("float8_e5m2", "float8_e4m3fn")
# What TensorFlow aborts the process for, if memory that it is given is not so aligned.
_ALIGNMENT = 64


class FunctionCall:
    """Takes the inputs in the order of their names, and gives the outputs so, on the host."""

    def __init__(self, signature: Any, spec: SignatureSpec, jit_compile: bool) -> None:
        """``signature`` is the loaded function. Raises ValueError where it cannot be called so."""
        for tensor in spec.inputs:
            if tensor.dtype in _NOT_BY_DLPACK:
                raise ValueError(
                    f"input {tensor.name!r} has dtype {tensor.dtype}, which TensorFlow does not "
                    "take by DLPack: set device_arrays = false"
                )
        self.function = _on_host(compiled(signature) if jit_compile else signature, spec)
        # What a call of the function looks up anew each time, and checks: see docs/decisions/0017.
        self._captured = list(self.function.captured_inputs)
        self._name = self.function.name.decode()
        self._outputs = len(spec.outputs)
        self._context = context.context()
        options = self._context.function_call_options.as_attrs()
        self._attributes = tuple(chain.from_iterable(options.items()))

    def __call__(self, *inputs: Any) -> list[Array]:
        """Inputs are DeviceArrays, or arrays of the host, which are copied."""
        tensors = [_tensor(value) for value in inputs]
        outputs = execute.quick_execute(
            self._name,
            self._outputs,
            tensors + self._captured,
            self._attributes,
            self._context,
        )
        # No copy: they are on the host.
        return [np.asarray(output) for output in outputs]


def _on_host(function: Any, spec: SignatureSpec) -> Any:
    """``function``, of tensors in the order of their names, with its outputs on the host.

    What XLA compiles is a function of its own in it: it could not hold a copy to the host.
    """

    def call(*tensors: Any) -> list[Any]:
        named = {tensor.name: value for tensor, value in zip(spec.inputs, tensors, strict=True)}
        outputs = function(**named)
        with tf.device("/CPU:0"):
            return [tf.identity(outputs[tensor.name]) for tensor in spec.outputs]

    specs = [tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in spec.inputs]
    return tf.function(call, autograph=False).get_concrete_function(*specs)


def _tensor(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return tf.constant(value)
    if value.pointer % _ALIGNMENT:
        raise Internal(
            f"an input lies at {value.pointer:#x} on the card: it must be {_ALIGNMENT}-byte aligned"
        )
    # Its stream is not to be had in Python: so this thread waits until the bytes are there.
    return tf.experimental.dlpack.from_dlpack(value.__dlpack__())
