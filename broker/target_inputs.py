"""What a target says of its inputs, against what the signature takes. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from batchyard.broker.policy import BatchingParameters
from batchyard.wire.errors import InvalidArgument
from batchyard.wire.protocol import InputHeader
from batchyard.wire.signatures import SignatureSpec, TensorSpec, format_shape, shape_fits
from batchyard.wire.tensors import element_count

# A tensor without elements has no bytes that bound its sizes, but numpy and TensorFlow want their
# product, with as many rows as a message may have and the size of an element, below 63 bits.
_EMPTY_MAX = 1 << 36


def declare(signature: SignatureSpec, inputs: tuple[InputHeader, ...], where: str) -> SignatureSpec:
    """An open signature, with the tensors of one request taken as declared.

    Raises InvalidArgument when there are none.
    """
    if not inputs:
        raise InvalidArgument(f"{where} got no input; it takes any, but at least one")
    scalars = not signature.batched
    specs = (
        TensorSpec(i.name, i.dtype, () if scalars and not i.shape else (None, *i.shape[1:]))
        for i in inputs
    )
    return replace(signature, inputs=tuple(sorted(specs, key=lambda spec: spec.name)))


def match_inputs(
    signature: SignatureSpec, inputs: tuple[InputHeader, ...], where: str
) -> tuple[int, ...]:
    """The place in the target of each of the signature's inputs.

    Raises InvalidArgument when one is missing, unknown or there twice.
    """
    places = {given.name: i for i, given in enumerate(inputs)}
    needed = [spec.name for spec in signature.inputs]
    unknown = [name for name in places if name not in needed]
    missing = [name for name in needed if name not in places]
    if unknown or missing or len(places) < len(inputs):
        complaint = (
            f"has no input {unknown[0]!r}"
            if unknown
            else f"misses input {missing[0]!r}"
            if missing
            else "got an input twice"
        )
        raise InvalidArgument(f"{where} {complaint}; its inputs are {listed(needed)}")
    return tuple(places[name] for name in needed)


def check_input(
    spec: TensorSpec,
    given: InputHeader,
    signature: SignatureSpec,
    parameters: BatchingParameters,
    where: str,
) -> None:
    """Whether an input's dtype and shape are taken. Raises InvalidArgument."""
    batched = signature.batched
    if given.dtype != spec.dtype:
        raise InvalidArgument(
            f"{where}: input {spec.name!r} has dtype {given.dtype}, needs {spec.dtype}"
        )
    # Where the message counts the rows any count fits an open dimension.
    shape = tuple(1 if dim is None else dim for dim in given.shape)
    # As in TensorFlow Serving the model may decide, but of rows that are padded, to be batched with
    # others.
    is_left_to_model = signature.checks_shapes and not parameters.pad_variable_length_inputs
    if not (is_left_to_model or shape_fits(spec, shape)) or (batched and not shape):
        raise InvalidArgument(
            f"{where}: input {spec.name!r} has shape {format_shape(given.shape)}, needs "
            f"{format_shape(spec.shape)}"
        )
    if 0 in shape and element_count([dim or 1 for dim in shape]) > _EMPTY_MAX:
        raise InvalidArgument(
            f"{where}: input {spec.name!r} has shape {format_shape(given.shape)}; without elements "
            f"its other sizes may multiply to {_EMPTY_MAX} at most"
        )
    if not batched and None in given.shape:
        raise InvalidArgument(
            f"{where}: requests for it are never batched, so each must be a message of its own "
            f"with whole shapes; input {spec.name!r} has {format_shape(given.shape)}"
        )


def row_shape(
    spec: TensorSpec, shape: tuple[int | None, ...], parameters: BatchingParameters
) -> tuple[int | None, ...]:
    """The shape of a row as rows of one batch must share it: None where they are padded."""
    dims = shape[1:]
    if not parameters.pad_variable_length_inputs:
        return dims
    declared = (None,) * len(dims) if spec.shape is None else spec.shape[1:]
    return tuple(None if want is None else dim for want, dim in zip(declared, dims, strict=False))


def listed(names: Iterable[object]) -> str:
    """Names as messages have them."""
    return ", ".join(repr(name) for name in names) or "none"
