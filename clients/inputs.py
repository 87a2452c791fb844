"""What a caller gives becomes arrays that fit a signature, or an error on the caller's stack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from batchyard.wire import dtypes
from batchyard.wire.arena import ALIGNMENT, align
from batchyard.wire.errors import InvalidArgument, NotFound
from batchyard.wire.protocol import InputHeader, Target
from batchyard.wire.signatures import SignatureSpec, TensorSpec, format_shape, shape_fits
from batchyard.wire.tensors import LARGE_NBYTES, as_bytes, element_count

Array = npt.NDArray[Any]
# Outputs that there is room to align for, where a signature does not say how many it has.
_OPEN_OUTPUTS = 16
# What ``predict`` takes: arrays, or whatever numpy makes arrays of, by input name; a model with
# one input also takes it bare.
Inputs = Mapping[str, Any] | Any


class Route:
    """One way to ask one model: what its signature takes, and the encoded targets in use.

    ``max_queued_rows`` is how many the server lets wait. ``connection`` counts the connections of
    the client: what another server, or the same one started again, said of a model need not hold.
    Nor does it when another version than ``served_version`` answers. ``may_retry``: a request may
    run twice. ``checks_shapes``: what does not fit the signature is refused here.
    """

    def __init__(
        self,
        model: str,
        version: int | None,
        label: str | None,
        priority: int,
        signature: SignatureSpec,
        connection: int,
        max_queued_rows: int,
        served_version: int | None = None,
        may_retry: bool = True,
        checks_shapes: bool = True,
    ) -> None:
        self.signature = signature
        self.connection = connection
        self.max_queued_rows = max_queued_rows
        self.may_retry = may_retry
        self._checks_shapes = checks_shapes
        self._served_version = served_version
        # Of the answer that came last.
        self.answered_version = 0
        self._model = model
        self._version = version
        self._label = label
        self._priority = priority
        self._where = f"model {model!r} signature {signature.name!r}"
        self._only = signature.inputs[0] if len(signature.inputs) == 1 else None
        self._dtypes = {spec.name: dtypes.to_numpy(spec.dtype) for spec in signature.inputs}
        self._input_dtypes = [spec.dtype for spec in signature.inputs]
        self._targets: dict[tuple[Any, ...], bytes] = {}
        # Targets by an only input's name (None: bare), dtype and row shape, as callers give them.
        self._known: dict[tuple[Any, ...], bytes] = {}
        self._output_row_nbytes = _row_nbytes(signature)
        self._learns_outputs = self._output_row_nbytes is None

    def check_version(self, version: int) -> None:
        """Notes which version answered."""
        self.answered_version = version
        if version != self._served_version and self._served_version is not None:
            self.forget()

    def forget(self) -> None:
        """Has the next call ask the server anew what the model takes."""
        self.connection = -1

    def has_large_reply(self, rows: int) -> bool:
        """Whether the outputs of so many rows are worth a place in the region."""
        return (self._output_row_nbytes or 0) * (rows or 1) >= LARGE_NBYTES

    def reply_nbytes(self, rows: int) -> int:
        """Bytes that the outputs of so many rows take, as far as that can be told."""
        # Each output is aligned; an open signature does not say how many there are.
        outputs = len(self.signature.outputs) or _OPEN_OUTPUTS
        return align((rows or 1) * (self._output_row_nbytes or 0)) + ALIGNMENT * outputs

    def learn_outputs(self, nbytes: int, rows: int) -> None:
        """Notes what outputs took, of a signature that does not say."""
        if self._learns_outputs:
            self._output_row_nbytes = max(-(-nbytes // (rows or 1)), self._output_row_nbytes or 0)

    def input_dtypes(self, arrays: Sequence[Array]) -> list[str]:
        """The wire dtypes of arrays that ``arrays`` returned."""
        if self.signature.open:
            return [dtypes.from_numpy(array.dtype) or "" for array in arrays]
        return self._input_dtypes

    def arrays(self, inputs: Inputs) -> tuple[list[Array], bytes, int]:
        """C-contiguous arrays in the order of the target, the encoded target, and the rows.

        Rows are 0 for a signature that is not batched. Raises InvalidArgument.
        """
        name, value = None, inputs
        if type(inputs) is dict and len(inputs) == 1:
            ((name, value),) = inputs.items()
        if type(value) is not np.ndarray or not value.ndim or not value.flags.c_contiguous:
            return self._checked(inputs)
        # As most come: one array, of a dtype and with rows of a shape that were checked before.
        key = name, value.dtype, value.shape[1:]
        target = self._known.get(key)
        if target is not None and len(value):
            return [value], target, len(value)
        arrays, target, rows = self._checked(inputs)
        if rows and arrays[0] is value:
            self._known[key] = target
        return arrays, target, rows

    def _checked(self, inputs: Inputs) -> tuple[list[Array], bytes, int]:
        signature = self.signature
        if self._only is not None and not isinstance(inputs, Mapping):
            arrays = [self._array(self._only, inputs)]
        elif signature.open:
            return self._open_arrays(inputs)
        else:
            arrays = [self._array(spec, value) for spec, value in self._match(inputs)]
        if not signature.batched:
            return arrays, self._target(tuple(array.shape for array in arrays)), 0
        rows = arrays[0].shape[0]
        if len(arrays) > 1:
            self._check_rows(arrays)
        if not rows:
            raise InvalidArgument(f"{self._where}: the request has no rows, needs at least one")
        return arrays, self._target(tuple(array.shape[1:] for array in arrays)), rows

    def joined(self, inputs: Sequence[Inputs]) -> tuple[Array, bytes, int] | None:
        """The requests of ``predict_many`` as one array, the encoded target, and the rows of each.

        None when they have to be looked at one by one: they differ, or are not small arrays.
        """
        first = inputs[0]
        if type(first) is not np.ndarray or not first.ndim or not len(first):
            return None
        dtype, shape = first.dtype, first.shape
        target = self._known.get((None, dtype, shape[1:]))
        # Half of the server's queue is left to others.
        if 2 * len(inputs) * len(first) > self.max_queued_rows:
            return None
        if (
            target is None
            or len(inputs) * first.nbytes > LARGE_NBYTES
            or self.has_large_reply(len(first))
        ):
            return None
        for item in inputs:
            if type(item) is not np.ndarray or item.shape != shape or item.dtype != dtype:
                return None
        arrays: Sequence[Any] = inputs
        return np.concatenate(arrays), target, len(first)

    def _match(self, inputs: Inputs) -> list[tuple[TensorSpec, Any]]:
        specs = self.signature.inputs
        needed = ", ".join(repr(spec.name) for spec in specs) or "none"
        if inputs is None:
            inputs = {}
        if not isinstance(inputs, Mapping):
            raise InvalidArgument(
                f"{self._where} takes several inputs by name: pass a dict with {needed}, not "
                f"{type(inputs).__name__}"
            )
        for name in inputs:
            if name not in self._dtypes:
                raise InvalidArgument(
                    f"{self._where} has no input {name!r}; its inputs are {needed}"
                )
        for spec in specs:
            if spec.name not in inputs:
                raise InvalidArgument(
                    f"{self._where} misses input {spec.name!r}; its inputs are {needed}"
                )
        return [(spec, inputs[spec.name]) for spec in specs]

    def _check_rows(self, arrays: Sequence[Array]) -> None:
        if len({array.shape[0] for array in arrays}) > 1:
            given = ", ".join(
                f"{spec.name!r} {format_shape(array.shape)}"
                for spec, array in zip(self.signature.inputs, arrays, strict=True)
            )
            raise InvalidArgument(
                f"{self._where}: inputs must have the same number of rows, got {given}"
            )

    def _array(self, spec: TensorSpec, value: Any) -> Array:
        dtype = self._dtypes[spec.name]
        if type(value) is not np.ndarray or value.dtype != dtype or dtype.hasobject:
            value = self._convert(spec, dtype, value)
        shape = value.shape
        is_wrong = self._checks_shapes and not shape_fits(spec, shape)
        if is_wrong or (self.signature.batched and not shape):
            raise InvalidArgument(
                f"{self._where}: input {spec.name!r} has shape {format_shape(shape)}, needs "
                f"{format_shape(spec.shape)}"
            )
        return value if value.flags.c_contiguous else np.ascontiguousarray(value)

    def _convert(self, spec: TensorSpec, dtype: np.dtype, value: Any) -> Array:
        """An array of exactly ``dtype``.

        Arrays are taken as they are or refused; Python's own values become the signature's
        dtype when that keeps what they mean.
        """
        is_array = hasattr(value, "dtype") or hasattr(value, "__array__")
        try:
            array = np.asarray(value)
        except UnicodeDecodeError:
            # Text and bytes side by side.
            array = np.array(value, object)
        except ValueError as error:
            raise InvalidArgument(f"{self._where}: input {spec.name!r}{_why(error)}") from None
        given = dtypes.from_numpy(array.dtype)
        if given == spec.dtype:
            return self._strings(spec.name, value) if given == dtypes.STRING else array
        if is_array or given is None or spec.dtype == dtypes.STRING or given == dtypes.STRING:
            if array.dtype == object:
                # Of objects that are no strings, like None, it is no help to say "string".
                raise InvalidArgument(
                    f"{self._where}: input {spec.name!r} holds {_kinds(array)}, needs {spec.dtype}"
                )
            raise self._wrong_dtype(spec, given or str(array.dtype))
        if _kind(given) > _kind(spec.dtype):
            raise self._wrong_dtype(spec, given)
        try:
            with np.errstate(over="raise"):
                converted = array.astype(dtype)
        except FloatingPointError as error:
            raise InvalidArgument(f"{self._where}: input {spec.name!r}: {error}") from None
        if _kind(spec.dtype) == 1 and not np.array_equal(converted, array):
            raise InvalidArgument(
                f"{self._where}: input {spec.name!r} has values that {spec.dtype} does not hold"
            )
        return converted

    def _strings(self, name: str, value: Any) -> Array:
        """An object array of bytes."""
        # Of Python's own values numpy would make fixed-width strings, without zeros at the end.
        try:
            array = np.asarray(value) if hasattr(value, "dtype") else np.array(value, object)
            strings = np.empty(array.shape, object)
            strings.reshape(-1)[:] = [as_bytes(item) for item in array.ravel().tolist()]
        except ValueError as error:
            raise InvalidArgument(f"{self._where}: input {name!r}: {error}") from None
        except InvalidArgument as error:
            raise InvalidArgument(f"{self._where}: input {name!r}: {error.message}") from None
        return strings

    def _wrong_dtype(self, spec: TensorSpec, given: str) -> InvalidArgument:
        return InvalidArgument(
            f"{self._where}: input {spec.name!r} has dtype {given}, needs {spec.dtype}"
        )

    def _open_arrays(self, inputs: Inputs) -> tuple[list[Array], bytes, int]:
        """Arrays for a signature that declares nothing, in the order of their names."""
        if not isinstance(inputs, Mapping) or not inputs:
            raise InvalidArgument(
                f"{self._where} declares no inputs: pass a dict with at least one array by name"
            )
        arrays = [self._open_array(name, inputs[name]) for name in sorted(inputs)]
        headers = [
            (name, dtypes.from_numpy(array.dtype) or "", array.shape)
            for name, array in zip(sorted(inputs), arrays, strict=True)
        ]
        if not self.signature.batched:
            return arrays, self._open_target(tuple(headers), ()), 0
        for name, dtype, shape in headers:
            if not shape:
                raise self._no_rows(name, dtype, shape)
        counts = {len(array) for array in arrays}
        if len(counts) > 1 or not counts - {0}:
            raise InvalidArgument(
                f"{self._where}: inputs must have the same number of rows, at least one, got "
                f"{sorted(counts)}"
            )
        headers = [(name, dtype, shape[1:]) for name, dtype, shape in headers]
        return arrays, self._open_target(tuple(headers), (None,)), len(arrays[0])

    def _open_array(self, name: str, value: Any) -> Array:
        try:
            array = np.asarray(value)
        except ValueError as error:
            raise InvalidArgument(f"{self._where}: input {name!r}{_why(error)}") from None
        dtype = dtypes.from_numpy(array.dtype)
        if dtype is None:
            raise self._no_rows(name, str(array.dtype), array.shape)
        if dtype == dtypes.STRING:
            return self._strings(name, value)
        # Not ascontiguousarray: it makes rows of scalars.
        return np.asarray(array, order="C")

    def _no_rows(self, name: str, dtype: str, shape: tuple[int, ...]) -> InvalidArgument:
        return InvalidArgument(
            f"{self._where}: input {name!r} must be an array with a dimension for rows, not "
            f"{dtype} of shape {format_shape(shape)}"
        )

    def _open_target(self, headers: tuple[Any, ...], lead: tuple[None, ...]) -> bytes:
        target = self._targets.get(headers)
        if target is None:
            specs = tuple(InputHeader(name, dtype, (*lead, *dims)) for name, dtype, dims in headers)
            target = self._remember(headers, specs)
        return target

    def _target(self, shapes: tuple[tuple[int, ...], ...]) -> bytes:
        target = self._targets.get(shapes)
        if target is None:
            lead: tuple[None, ...] = (None,) if self.signature.batched else ()
            specs = tuple(
                InputHeader(spec.name, spec.dtype, (*lead, *shape))
                for spec, shape in zip(self.signature.inputs, shapes, strict=True)
            )
            target = self._remember(shapes, specs)
        return target

    def _remember(self, key: tuple[Any, ...], inputs: tuple[InputHeader, ...]) -> bytes:
        if len(self._targets) >= 4096:
            self._targets.clear()
            self._known.clear()
        target = self._targets[key] = Target(
            self._model, self._version, self._label, self.signature.name, self._priority, inputs
        ).encode()
        return target


def _why(error: ValueError) -> str:
    """Why numpy makes no array of a value."""
    if "inhomogeneous" in str(error):
        return " is no array: its lists differ in length"
    return f": {error}"


def _kinds(array: Array) -> str:
    """The types of an array's objects."""
    names = sorted({type(item).__name__ for item in array.ravel().tolist()})
    return ", ".join("None (null)" if name == "NoneType" else name for name in names)


def _row_nbytes(signature: SignatureSpec) -> int | None:
    """Bytes of the outputs of one row; None when the signature does not say."""
    if signature.open:
        return None
    nbytes = 0
    for spec in signature.outputs:
        if spec.dtype == dtypes.STRING:
            # Such outputs are never written into a region: nor are others beside them.
            return 0
        dims = None if spec.shape is None else spec.shape[1 if signature.batched else 0 :]
        if dims is None or None in dims:
            return None
        nbytes += element_count([dim or 0 for dim in dims]) * dtypes.itemsize(spec.dtype)
    return nbytes


def _kind(dtype: str) -> int:
    """Which values are also others: truth values < whole numbers < fractions < complex numbers."""
    if dtype == "bool":
        return 0
    if dtype.startswith(("int", "uint")):
        return 1
    return 3 if dtype.startswith("complex") else 2


def many_at_once(route: Route, inputs: Sequence[Inputs]) -> int:
    """How many of ``predict_many``'s requests may be under way, judged by the first of them.

    Half of the server's queue is left to others.
    """
    rows = route.arrays(inputs[0])[2] or 1
    return max(route.max_queued_rows // (2 * rows), 1)


def make_route(
    model: str,
    version: int | None,
    label: str | None,
    signature: str,
    priority: int,
    metadata: Mapping[str, Any],
    connection: int,
    checks_shapes: bool = True,
) -> Route:
    """The route that the broker's metadata of a model describes. Raises NotFound.

    Unless it ``checks_shapes`` the server is to decide.
    """
    specs = metadata["signatures"]
    if signature not in specs:
        names = ", ".join(repr(name) for name in sorted(specs))
        raise NotFound(f"model {model!r} has no signature {signature!r}; it has {names}")
    spec = SignatureSpec.from_wire(specs[signature])
    rows = metadata["max_batch_size"] if spec.batched else 1
    max_queued_rows = metadata["max_enqueued_batches"] * rows
    return Route(
        model,
        version,
        label,
        priority,
        spec,
        connection,
        max_queued_rows,
        metadata.get("version"),
        # A server that is older than that word runs nothing twice by itself.
        metadata.get("retry", True),
        checks_shapes,
    )


def readable_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The broker's metadata with tensors by name: ``{"dtype": …, "shape": [None, 3]}``."""

    def tensors(specs: Any) -> dict[str, Any]:
        return {name: {"dtype": dtype, "shape": shape} for name, dtype, shape in specs}

    signatures = {
        name: {
            "inputs": tensors(spec["inputs"]),
            "outputs": tensors(spec["outputs"]),
            "method_name": spec["method_name"],
            "batched": spec["batched"],
            "open": spec["open"],
        }
        for name, spec in metadata["signatures"].items()
    }
    return {**metadata, "signatures": signatures}
