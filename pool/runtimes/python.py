"""Runs a Python callable: a dict of arrays in, a dict of arrays out.

For pre- and post-processing, for other frameworks, and, with a callable that sleeps, as a
simulated device of known speed. On a card, with ``device_arrays``, the arrays are there.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from batchyard.pool.gpu import dlpack
from batchyard.pool.runtimes.base import Array, ModelLoadError
from batchyard.pool.runtimes.functions_end import collect_functions
from batchyard.pool.runtimes.model_errors import explain
from batchyard.pool.runtimes.out_of_memory import give_back_cached_memory
from batchyard.wire import dtypes
from batchyard.wire.errors import BatchyardError, Internal, ResourceExhausted
from batchyard.wire.signatures import (
    SignatureSpec,
    TensorSpec,
    can_be_batched,
    format_shape,
    shape_fits,
)

SIGNATURE = "serving_default"
# numpy's words for writing to such an array, and for giving it to who may.
_READ_ONLY = re.compile(r"read-?only")


class PythonModel:
    """A callable, with the signature that the configuration gives it, if it does."""

    stateful = False
    signature_def = b""
    # It may have an event loop, or a connection that belongs to a thread.
    any_thread = False

    def __init__(
        self,
        name: str,
        path: str,
        signature: dict[str, Any] | None,
        read_in_place: bool = True,
        device_arrays: bool = False,
    ) -> None:
        """Imports ``module:callable`` or ``file.py:callable``. Raises ModelLoadError."""
        self._name = name
        self.bears_changing_inputs = read_in_place
        self.device_arrays = device_arrays
        # Whether it was seen to write to its inputs.
        self._writes_inputs = False
        self._found = _Found()
        self._found.find(path)
        self._spec = _spec(signature)
        end = weakref.finalize(self, self._found.end)
        end.atexit = False

    @property
    def signatures(self) -> Sequence[SignatureSpec]:
        """The one."""
        return [self._spec]

    def run(self, signature: str, inputs: Mapping[str, Any]) -> Sequence[tuple[str, Any]]:
        """See ``LoadedModel``. What the callable raises is INTERNAL, unless it is typed."""
        if self._writes_inputs:
            inputs = _writeable(inputs)
        failure: BatchyardError
        try:
            outputs = self._found.function(dict(inputs))
        except Exception as error:
            if self._has_written_to_inputs(error, inputs):
                # A client's memory is not for it to write to: from now on it gets copies.
                self._writes_inputs = True
                return self.run(signature, inputs)
            failure = explain(self._name, error)
        else:
            return self._outputs(outputs)
        if isinstance(failure, ResourceExhausted):
            # Only now are the function's variables gone, and what they held of a card.
            give_back_cached_memory()
        raise failure

    def _has_written_to_inputs(self, error: Exception, inputs: Mapping[str, Any]) -> bool:
        return (
            isinstance(error, ValueError | BufferError)
            and _READ_ONLY.search(str(error)) is not None
            and not self.device_arrays
            and not all(array.flags.writeable for array in inputs.values())
        )

    def _outputs(self, outputs: Any) -> Sequence[tuple[str, Any]]:
        if not isinstance(outputs, Mapping):
            raise Internal(
                f"model {self._name!r} must return a dict of arrays, not {type(outputs).__name__}"
            )
        if self._spec.open:
            return [(str(name), self._array(output)) for name, output in outputs.items()]
        return [(spec.name, self._output(spec, outputs)) for spec in self._spec.outputs]

    def let_go(self) -> None:
        """See ``LoadedModel``: what a callable keeps, it means to keep."""

    def _array(self, output: Any) -> Any:
        """A numpy array, or, where it lies on the card, what the function returned."""
        if self.device_arrays and dlpack.is_on_card(output):
            return output
        return np.asarray(output)

    def _output(self, spec: TensorSpec, outputs: Mapping[str, Any]) -> Any:
        if spec.name not in outputs:
            raise Internal(f"model {self._name!r} returned no output {spec.name!r}")
        array = self._array(outputs[spec.name])
        if isinstance(array, np.ndarray):
            dtype, shape = dtypes.from_numpy(array.dtype), array.shape
            said = str(array.dtype)
        else:
            dtype, shape = _looks(array)
            said = dtype
        if dtype != spec.dtype or not shape_fits(spec, shape):
            raise Internal(
                f"model {self._name!r} returned output {spec.name!r} as {said} of shape "
                f"{format_shape(shape)}, the configuration declares {spec.dtype} of shape "
                f"{format_shape(spec.shape)}"
            )
        return array


def _looks(output: Any) -> tuple[str, tuple[int, ...]]:
    """The dtype's name on the wire and the shape of what lies on the card.

    Frameworks name dtypes as the wire does. Asked by DLPack without a stream, JAX waits until it
    has computed it.
    """
    dtype = getattr(output, "dtype", None)
    name = str(getattr(dtype, "name", dtype)).removeprefix("torch.")
    if dtypes.is_known(name):
        return name, tuple(output.shape)
    return dlpack.describe(output)


def _writeable(inputs: Mapping[str, Array]) -> dict[str, Array]:
    return {
        name: array if array.flags.writeable else array.copy() for name, array in inputs.items()
    }


class _Found:
    """A model's function, and the module that was made of its file for it alone."""

    def __init__(self) -> None:
        self.function: Any = None
        self._module: ModuleType | None = None

    def find(self, path: str) -> None:
        """Imports it. Raises ModelLoadError."""
        where, _, attribute = path.rpartition(":")
        try:
            found: Any
            if where.endswith(".py"):
                found = self._module = _load_file(Path(where))
            else:
                found = _import(where)
            for part in attribute.split("."):
                found = getattr(found, part)
        except Exception as error:
            raise ModelLoadError(f"{path}: {type(error).__name__}: {error}") from error
        if not callable(found):
            raise ModelLoadError(f"{path}: is not callable")
        self.function = found

    def end(self) -> None:
        """Lets go of both. What the file made when it was loaded, such as weights, goes with them.

        A function and its module refer to each other.
        """
        self.function = None
        module, self._module = self._module, None
        if module is None:
            return
        if sys.modules.get(module.__name__) is module:
            del sys.modules[module.__name__]
        del module
        collect_functions()


def _import(module: str) -> Any:
    # As `python -m` does: what lies in the folder that the server was started in can be named.
    if "" not in sys.path:
        sys.path.insert(0, "")
    return importlib.import_module(module)


def _load_file(path: Path) -> ModuleType:
    name = f"batchyard_model_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _spec(signature: dict[str, Any] | None) -> SignatureSpec:
    if signature is None:
        return SignatureSpec(SIGNATURE, (), (), batched=True, open=True)
    inputs = _tensors(signature["inputs"])
    outputs = _tensors(signature["outputs"])
    return SignatureSpec(SIGNATURE, inputs, outputs, can_be_batched(inputs, outputs))


def _tensors(tensors: Mapping[str, Any]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(name, t["dtype"], tuple(None if dim < 0 else dim for dim in t["shape"]))
        for name, t in sorted(tensors.items())
    )
