"""Runs a Python callable: a dict of arrays in, a dict of arrays out.

For pre- and post-processing, for other frameworks, and, with a callable that sleeps, as a
simulated device of known speed.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from batchyard.pool.runtimes.base import Array, ModelLoadError
from batchyard.wire import dtypes
from batchyard.wire.errors import BatchyardError, Internal
from batchyard.wire.signatures import (
    SignatureSpec,
    TensorSpec,
    can_be_batched,
    format_shape,
    shape_fits,
)

SIGNATURE = "serving_default"


class PythonModel:
    """A callable, with the signature that the configuration gives it, if it does."""

    stateful = False
    signature_def = b""
    # It may have an event loop, or a connection that belongs to a thread.
    any_thread = False

    def __init__(
        self, name: str, path: str, signature: dict[str, Any] | None, read_in_place: bool = True
    ) -> None:
        """Imports ``module:callable`` or ``file.py:callable``. Raises ModelLoadError."""
        self._name = name
        self.bears_changing_inputs = read_in_place
        # Whether it was seen to write to its inputs.
        self._writes_inputs = False
        self._function = _find(path)
        self._spec = _spec(signature)

    @property
    def signatures(self) -> Sequence[SignatureSpec]:
        """The one."""
        return [self._spec]

    def run(self, signature: str, inputs: Mapping[str, Array]) -> Sequence[tuple[str, Array]]:
        """See ``LoadedModel``. What the callable raises is INTERNAL, unless it is typed."""
        if self._writes_inputs:
            inputs = _writeable(inputs)
        try:
            outputs = self._function(dict(inputs))
        except ValueError as error:
            if "read-only" in str(error) and not all(a.flags.writeable for a in inputs.values()):
                # A client's memory is not for it to write to: from now on it gets copies.
                self._writes_inputs = True
                return self.run(signature, inputs)
            raise Internal(f"model {self._name!r}: {type(error).__name__}: {error}") from None
        except BatchyardError:
            raise
        except MemoryError:
            raise
        except Exception as error:
            raise Internal(f"model {self._name!r}: {type(error).__name__}: {error}") from None
        if not isinstance(outputs, Mapping):
            raise Internal(
                f"model {self._name!r} must return a dict of arrays, not {type(outputs).__name__}"
            )
        if self._spec.open:
            return [(str(name), np.asarray(array)) for name, array in outputs.items()]
        return [(spec.name, self._output(spec, outputs)) for spec in self._spec.outputs]

    def let_go(self) -> None:
        """See ``LoadedModel``: what a callable keeps, it means to keep."""

    def _output(self, spec: TensorSpec, outputs: Mapping[str, Any]) -> Array:
        if spec.name not in outputs:
            raise Internal(f"model {self._name!r} returned no output {spec.name!r}")
        array = np.asarray(outputs[spec.name])
        if dtypes.from_numpy(array.dtype) != spec.dtype or not shape_fits(spec, array.shape):
            raise Internal(
                f"model {self._name!r} returned output {spec.name!r} as {array.dtype} of shape "
                f"{format_shape(array.shape)}, the configuration declares {spec.dtype} of shape "
                f"{format_shape(spec.shape)}"
            )
        return array


def _writeable(inputs: Mapping[str, Array]) -> dict[str, Array]:
    return {
        name: array if array.flags.writeable else array.copy() for name, array in inputs.items()
    }


def _find(path: str) -> Callable[[dict[str, Array]], Any]:
    where, _, attribute = path.rpartition(":")
    try:
        module = _load_file(Path(where)) if where.endswith(".py") else _import(where)
        function = module
        for part in attribute.split("."):
            function = getattr(function, part)
    except Exception as error:
        raise ModelLoadError(f"{path}: {type(error).__name__}: {error}") from error
    if not callable(function):
        raise ModelLoadError(f"{path}: is not callable")
    found: Callable[[dict[str, Array]], Any] = function
    return found


def _import(module: str) -> Any:
    # As `python -m` does: what lies in the folder that the server was started in can be named.
    if "" not in sys.path:
        sys.path.insert(0, "")
    return importlib.import_module(module)


def _load_file(path: Path) -> Any:
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
