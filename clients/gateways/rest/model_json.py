"""What models are and how they do, and errors, as TensorFlow Serving's REST interface says it.

Protobuf's own JSON in C++ made these answers: indented by one space, int64 as strings, defaults
printed, members of a oneof (a tensor's name, a model's version) after all other fields. Python's
differs in all that is not said by options, hence this printer.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from batchyard.clients.gateways.rest import json_numbers, json_strings
from batchyard.wire.tensorflow_serving.messages import (
    GetModelStatusResponse,
    ModelSpec,
)

_INT64 = (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64)


def encode_metadata(name: str, version: int, signature_def: Any) -> bytes:
    """The answer to ``…/metadata``; ``signature_def`` is a ``SignatureDefMap``."""
    spec = ModelSpec(name=name)
    spec.version.value = version
    return b"".join(
        [
            b'{\n"model_spec":',
            _document(spec),
            b',\n"metadata": {"signature_def": ',
            _document(signature_def),
            b"}\n}\n",
        ]
    )


def encode_statuses(statuses: Iterable[tuple[int, str, str, str]]) -> bytes:
    """The answer to ``/v1/models/MODEL``, of versions, their states, codes and messages."""
    response = GetModelStatusResponse()
    for version, state, code, message in statuses:
        status = response.model_version_status.add(version=version)
        status.state = status.State.Value(state)
        status.status.error_code = _enum_number(status.status, "error_code", code)
        status.status.error_message = message
    return _document(response)


def encode_error(message: str) -> bytes:
    """The body of every answer that is an error."""
    return b'{ "error": ' + json_strings.text(message.encode(errors="backslashreplace")) + b" }"


def _enum_number(message: Any, field: str, name: str) -> int:
    enum = message.DESCRIPTOR.fields_by_name[field].enum_type
    number: int = enum.values_by_name[name].number
    return number


def _document(message: Any) -> bytes:
    return _message(message, 0) + b"\n"


def _message(message: Any, level: int) -> bytes:
    if message.DESCRIPTOR.full_name == "google.protobuf.Int64Value":
        return b'"%d"' % message.value
    members = [
        (field.name, _field(message, field, level + 1))
        for field in _in_order(message)
        if _is_printed(message, field)
    ]
    return _object(members, level)


def _in_order(message: Any) -> list[FieldDescriptor]:
    fields = message.DESCRIPTOR.fields
    return sorted(fields, key=lambda field: field.containing_oneof is not None)


def _is_printed(message: Any, field: FieldDescriptor) -> bool:
    return not field.has_presence or bool(message.HasField(field.name))


def _field(message: Any, field: FieldDescriptor, level: int) -> bytes:
    value = getattr(message, field.name)
    if not field.is_repeated:
        return _value(value, field, level)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        of = field.message_type.fields_by_name["value"]
        members = [(str(key), _value(value[key], of, level + 1)) for key in sorted(value)]
        return _object(members, level)
    return _array([_value(item, field, level + 1) for item in value], level)


def _value(value: Any, field: FieldDescriptor, level: int) -> bytes:
    if field.message_type is not None:
        return _message(value, level)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return b"%d" % value if known is None else _string(known.name)
    return _scalar(value, field)


def _scalar(value: Any, field: FieldDescriptor) -> bytes:
    if isinstance(value, bytes):
        return json_strings.base64_text(value)
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, bool):
        return b"true" if value else b"false"
    if isinstance(value, float):
        return json_numbers.float_texts([value], is_double=True)[0]
    return b'"%d"' % value if field.cpp_type in _INT64 else b"%d" % value


def _string(value: str) -> bytes:
    text = json_strings.text(value.encode(errors="backslashreplace"))
    # Protobuf keeps its JSON out of the way of HTML.
    return text.replace(b"<", b"\\u003c").replace(b">", b"\\u003e")


def _object(members: list[tuple[str, bytes]], level: int) -> bytes:
    if not members:
        return b"{}"
    lines = [b" " * (level + 1) + _string(name) + b": " + value for name, value in members]
    return b"{\n" + b",\n".join(lines) + b"\n" + b" " * level + b"}"


def _array(items: list[bytes], level: int) -> bytes:
    if not items:
        return b"[]"
    lines = [b" " * (level + 1) + item for item in items]
    return b"[\n" + b",\n".join(lines) + b"\n" + b" " * level + b"]"
