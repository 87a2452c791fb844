"""What a model's signature takes and gives, and whether given shapes fit it.

Both the SDK (early, with the caller's stack) and the broker (which trusts no message) check
with the same functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from batchyard.wire.errors import Internal

Shape = tuple[int | None, ...]

# The one that is meant where none is named.
DEFAULT_SIGNATURE = "serving_default"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One named input or output.

    ``dtype`` is a name of ``wire.dtypes``. ``shape`` has None where a dimension is unknown;
    it is None itself when not even the rank is known.
    """

    name: str
    dtype: str
    shape: Shape | None

    def to_wire(self) -> list[Any]:
        """``[name, dtype, shape]`` with None kept for what is unknown."""
        return [self.name, self.dtype, None if self.shape is None else list(self.shape)]

    @classmethod
    def from_wire(cls, body: Any) -> TensorSpec:
        """The spec that ``to_wire`` wrote; Internal when it is none."""
        if not _is_array(body) or len(body) != 3:
            raise Internal("a tensor's specification must be [name, dtype, shape]")
        name, dtype, shape = body
        if not (isinstance(name, str) and isinstance(dtype, str) and _is_shape(shape)):
            raise Internal("a tensor's specification has a name, dtype or shape that is none")
        return cls(name, dtype, None if shape is None else tuple(shape))


@dataclass(frozen=True, slots=True)
class SignatureSpec:
    """A signature: its inputs and outputs in a fixed order, and how it may be run.

    An ``open`` signature declares no tensors and takes any; its rows share the first dimension.
    ``batched`` is False when the first dimension of a tensor is fixed, when there are no
    inputs, or when the configuration says so: such requests run alone, as they came.
    ``method_name`` is the SavedModel's (``tensorflow/serving/predict`` and so on).
    ``checks_shapes``: the model itself refuses shapes that it cannot take, and may take others than
    it declares.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batched: bool
    method_name: str = "tensorflow/serving/predict"
    open: bool = False
    checks_shapes: bool = False

    def to_wire(self) -> dict[str, Any]:
        """A map of plain values, for msgpack."""
        return {
            "name": self.name,
            "inputs": [spec.to_wire() for spec in self.inputs],
            "outputs": [spec.to_wire() for spec in self.outputs],
            "batched": self.batched,
            "method_name": self.method_name,
            "open": self.open,
            "checks_shapes": self.checks_shapes,
        }

    @classmethod
    def from_wire(cls, body: Any) -> SignatureSpec:
        """The signature that ``to_wire`` wrote.

        Internal when it is none: only servers say what signatures there are, never a caller.
        """
        if not isinstance(body, dict):
            raise Internal("a signature must be a map")
        for key, is_right in _FIELDS.items():
            if not is_right(body.get(key)):
                raise Internal(f"a signature's {key} is missing, or is none")
        return cls(
            name=body["name"],
            inputs=tuple(TensorSpec.from_wire(spec) for spec in body["inputs"]),
            outputs=tuple(TensorSpec.from_wire(spec) for spec in body["outputs"]),
            batched=body["batched"],
            method_name=body["method_name"],
            open=body["open"],
            checks_shapes=bool(body.get("checks_shapes")),
        )


def _is_array(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_shape(value: Any) -> bool:
    return value is None or (
        _is_array(value) and all(dim is None or (type(dim) is int and dim >= 0) for dim in value)
    )


_FIELDS: dict[str, Callable[[Any], bool]] = {
    "name": _is_text,
    "inputs": _is_array,
    "outputs": _is_array,
    "batched": _is_flag,
    "method_name": _is_text,
    "open": _is_flag,
}


def can_be_batched(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> bool:
    """Whether requests may share a call: every tensor's first dimension is open.

    An unknown rank counts as open, as in TensorFlow Serving.
    """

    def is_open(spec: TensorSpec) -> bool:
        return spec.shape is None or (len(spec.shape) > 0 and spec.shape[0] is None)

    return bool(inputs) and all(map(is_open, inputs)) and all(map(is_open, outputs))


def shape_fits(spec: TensorSpec, shape: Sequence[int]) -> bool:
    """Whether a tensor of ``shape`` may be fed to ``spec``.

    Dimensions of size 1 at the end of the declared shape may be left out: TensorFlow Serving
    checks no shapes at all, and its own first example sends ``[1.0, 2.0, 5.0]`` to an input
    declared ``(-1, 1)``. The tensor is fed with the rank it came with.
    """
    if spec.shape is None:
        return True
    declared = spec.shape
    if 0 < len(shape) < len(declared) and all(dim == 1 for dim in declared[len(shape) :]):
        declared = declared[: len(shape)]
    if len(shape) != len(declared):
        return False
    return all(want is None or want == got for want, got in zip(declared, shape, strict=True))


def format_shape(shape: Sequence[int | None] | None) -> str:
    """``(?, 224, 224, 3)``; a shape whose rank is unknown is ``any shape``."""
    if shape is None:
        return "any shape"
    dims = ", ".join("?" if dim is None else str(dim) for dim in shape)
    return f"({dims},)" if len(shape) == 1 else f"({dims})"
