"""Bodies of ``:predict``: a row a time (``instances``), or a tensor a time (``inputs``).

The formats: https://www.tensorflow.org/tfx/serving/api_rest#predict_api
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn

from batchyard.clients.gateways.rest import flat_numbers, json_arrays, json_layout
from batchyard.clients.gateways.rest.json_arrays import to_array
from batchyard.clients.gateways.rest.json_document import parse_object, printable, quoted
from batchyard.clients.gateways.rest.json_strings import is_base64
from batchyard.clients.inputs import Array
from batchyard.wire.errors import BatchyardError, InvalidArgument
from batchyard.wire.signatures import TensorSpec

InputsOf = Callable[[str], Mapping[str, TensorSpec]]
_INSTANCES = "instances"
_INPUTS = "inputs"


class PredictRequest(NamedTuple):
    """What a body asks for. The answer to rows is in rows."""

    signature_name: str
    inputs: dict[str, Array]
    is_row: bool


def decode_predict(body: bytes, inputs_of: InputsOf) -> PredictRequest:
    """The tensors of a request.

    ``inputs_of`` gives the inputs of a signature (``""``: the default one), and raises what it
    likes. Raises InvalidArgument, which says what is wrong, and Unimplemented for inputs of
    complex numbers.
    """
    plain = flat_numbers.find(body)
    if plain is not None:
        specs = _inputs(inputs_of, plain.signature_name)
        spec = _only(specs) if plain.name is None else specs.get(plain.name)
        if spec is not None and len(specs) == 1:
            array = flat_numbers.read(body, plain, spec.dtype)
            if array is not None:
                is_row = plain.key == _INSTANCES
                return PredictRequest(plain.signature_name, {spec.name: array}, is_row)
    return _decode_document(parse_object(body), inputs_of)


def encode_predict(outputs: Mapping[str, Array], *, is_row: bool) -> bytes:
    """The body of an answer, laid out as TensorFlow Serving does; outputs stand by name.

    The name of a single output is left out. Raises InvalidArgument when outputs have no JSON, or
    no rows in common.
    """
    if not outputs:
        raise InvalidArgument("Cannot convert empty tensor map to JSON")
    arrays = {name: outputs[name] for name in sorted(outputs)}
    return json_layout.rows(arrays) if is_row else json_layout.columns(arrays)


def signature_name(document: dict[str, Any]) -> str:
    """The name of the signature that a body asks for; ``""`` when it says none."""
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise InvalidArgument(
            f"JSON Value: {quoted(document)} not formatted correctly. 'signature_name' key must "
            "be a string value."
        )
    return name.encode(errors="backslashreplace").decode()


def _decode_document(document: dict[str, Any], inputs_of: InputsOf) -> PredictRequest:
    signature = signature_name(document)
    specs = _inputs(inputs_of, signature)
    is_row = _INSTANCES in document
    if is_row and _INPUTS in document:
        raise InvalidArgument(
            f"JSON Value: {quoted(document)} Not formatted correctly expecting only one of "
            f"'{_INPUTS}' or '{_INSTANCES}' keys to exist"
        )
    if is_row:
        inputs = _from_rows(document, specs)
    elif _INPUTS in document:
        inputs = _from_columns(document[_INPUTS], specs)
    else:
        raise InvalidArgument(f"Missing '{_INPUTS}' or '{_INSTANCES}' key")
    return PredictRequest(signature, inputs, is_row)


def _inputs(inputs_of: InputsOf, signature: str) -> Mapping[str, TensorSpec]:
    specs = inputs_of(signature)
    if not specs:
        raise InvalidArgument(
            f"Failed to get input map for signature: {printable(signature) or 'DEFAULT'}"
        )
    return specs


def _only(specs: Mapping[str, TensorSpec]) -> TensorSpec:
    return next(iter(specs.values()))


def _from_columns(value: Any, specs: Mapping[str, TensorSpec]) -> dict[str, Array]:
    if not isinstance(value, dict) or is_base64(value):
        if len(specs) > 1:
            raise InvalidArgument(
                "inputs is a plain value/list, but expecting an object as multiple input tensors "
                f"required as per tensorinfo_map: {', '.join(sorted(specs))}"
            )
        spec = _only(specs)
        return {spec.name: to_array(value, spec.dtype)}
    for name in specs:
        if name not in value:
            raise InvalidArgument(f"Missing named input: {name} in 'inputs' object.")
    return {name: to_array(value[name], spec.dtype) for name, spec in specs.items()}


def _from_rows(document: dict[str, Any], specs: Mapping[str, TensorSpec]) -> dict[str, Array]:
    rows = document[_INSTANCES]
    if not isinstance(rows, list):
        raise InvalidArgument(
            f"JSON Value: {quoted(document)} Excepting '{_INSTANCES}' to be an list/array"
        )
    if not rows:
        raise InvalidArgument(f"JSON Value: {quoted(document)} No values in '{_INSTANCES}' array")
    if _is_row_object(rows[0]):
        return _from_objects(rows, specs)
    if len(specs) > 1:
        raise InvalidArgument(
            "instances is a plain list, but expecting list of objects as multiple input tensors "
            f"required as per tensorinfo_map: {', '.join(sorted(specs))}"
        )
    if dict in set(map(type, rows)):
        for number, row in enumerate(rows):
            if _is_row_object(row):
                raise InvalidArgument(
                    f"Expecting value/list but got object at item {number} of input list"
                )
    spec = _only(specs)
    return {spec.name: _stack(rows, spec.dtype, key=None)}


def _is_row_object(value: Any) -> bool:
    return isinstance(value, dict) and not is_base64(value)


def _from_objects(rows: list[Any], specs: Mapping[str, TensorSpec]) -> dict[str, Array]:
    for number, row in enumerate(rows):
        if not _is_row_object(row):
            raise InvalidArgument(f"Expecting object but got list at item {number} of input list")
        if row.keys() != specs.keys():
            _refuse_keys(number, row, specs)
    return {
        name: _stack([row[name] for row in rows], spec.dtype, key=name)
        for name, spec in specs.items()
    }


def _refuse_keys(number: int, row: dict[str, Any], specs: Mapping[str, TensorSpec]) -> NoReturn:
    for key in row:
        if key not in specs:
            raise InvalidArgument(
                f"Failed to process element: {number} key: {printable(key)} of 'instances' list. "
                f"Error: INVALID_ARGUMENT: JSON object: does not have named input: {printable(key)}"
            )
    raise InvalidArgument(
        f"Failed to process element: {number} of 'instances' list. JSON object: {quoted(row)} "
        f"must only have keys: {','.join(sorted(specs))}"
    )


def _stack(rows: list[Any], dtype: str, key: str | None) -> Array:
    """One tensor of the same input of all rows."""
    json_arrays.check_has_json(rows[0], dtype)
    try:
        shape = json_arrays.leading_shape(rows)
        array = json_arrays.pack(rows, shape, dtype)
    except InvalidArgument as error:
        raise _of_row(0, key, error) from None
    if array is None:
        _refuse_rows(rows, shape[1:], dtype, key)
    return array


def _refuse_rows(
    rows: list[Any], shape: json_arrays.Shape, dtype: str, key: str | None
) -> NoReturn:
    number = json_arrays.first_wrong(rows, shape, dtype)
    try:
        _refuse_shape(shape, to_array(rows[number], dtype).shape)
    except InvalidArgument as error:
        raise _of_row(number, key, error) from None


def _refuse_shape(want: json_arrays.Shape, got: json_arrays.Shape) -> NoReturn:
    sizes = [math.prod(want), math.prod(got)]
    if sizes[0] != sizes[1]:
        raise InvalidArgument(f"Expecting tensor size: {sizes[0]} but got: {sizes[1]}")
    shown = [f"[{','.join(map(str, shape))}]" for shape in (want, got)]
    raise InvalidArgument(f"Expecting shape {shown[0]} but got: {shown[1]}")


def _of_row(number: int, key: str | None, error: BatchyardError) -> InvalidArgument:
    of = f"{number}" if key is None else f"{number} key: {key}"
    return InvalidArgument(
        f"Failed to process element: {of} of 'instances' list. Error: {error.code}: {error.message}"
    )
