"""The text of a request as Python values, and values as an error quotes them."""

from __future__ import annotations

import json
from typing import Any, NoReturn

import orjson

from batchyard.wire.errors import InvalidArgument

_BOM = b"\xef\xbb\xbf"
# Lists and objects of a document. One takes up to 200 bytes, for three of a body's, and while they
# are made nobody else has a turn: so many take a second or two.
_CONTAINERS_MAX = 1 << 22
# Of an integer that may still be an integer: longer ones are numbers as 1e30 is one.
_INTEGER_DIGITS_MAX = 20
_INT64_MIN = -(1 << 63)
_UINT64_MAX = (1 << 64) - 1
# What an error quotes of a value.
_QUOTED_ITEMS = 5
_QUOTED_LEVELS = 3
_QUOTED_CHARACTERS = 80
# What RapidJSON, TensorFlow Serving's parser, says where Python's says what is left of the colon:
# https://github.com/Tencent/rapidjson/blob/master/include/rapidjson/error/en.h
_RAPIDJSON = {
    "Expecting value": "Invalid value.",
    "Illegal trailing comma before end of array": "Invalid value.",
    "Extra data": "The document root must not be followed by other values.",
    "Expecting property name enclosed in double quotes": "Missing a name for object member.",
    "Illegal trailing comma before end of object": "Missing a name for object member.",
    "Expecting ':' delimiter": "Missing a colon after a name of object member.",
    # It tells objects from arrays: "} after an object member", "] after an array element".
    "Expecting ',' delimiter": "Missing a comma or } or ].",
    "Unterminated string starting at": "Missing a closing quotation mark in string.",
    "Invalid \\escape": "Invalid escape character in string.",
    "Invalid \\uXXXX escape": "Incorrect hex digit after \\u escape in string.",
}


def parse_object(body: bytes) -> dict[str, Any]:
    """The object that a request's body must be.

    Raises InvalidArgument. Of a key that stands twice in an object the last counts. In strings
    that are not UTF-8 each wrong byte is a surrogate (``surrogateescape``).
    """
    if not body:
        raise InvalidArgument("JSON Parse error: The document is empty")
    if body.count(b"[") + body.count(b"{") > _CONTAINERS_MAX:
        raise InvalidArgument(
            f"the body has more lists and objects than {_CONTAINERS_MAX}: ask for fewer at once"
        )
    document = parse(body.removeprefix(_BOM))
    if not isinstance(document, dict):
        raise InvalidArgument(f"JSON Value: {quoted(document)} Is not object")
    return document


def parse(text: bytes) -> Any:
    """Any JSON text. Integers that neither int64 nor uint64 holds are floats. Raises
    InvalidArgument."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        # It takes no NaN and Infinity, and no strings that are not UTF-8; TensorFlow Serving does.
        return _parse_leniently(text)


def _parse_leniently(text: bytes) -> Any:
    try:
        return _decoder.decode(text.decode(errors="surrogateescape"))
    except json.JSONDecodeError as error:
        words = _RAPIDJSON.get(error.msg.partition(": ")[0], error.msg)
        if not error.doc.strip():
            words = "The document is empty."
        raise InvalidArgument(f"JSON Parse error: {words} at offset: {error.pos}") from None
    except RecursionError:
        raise InvalidArgument("JSON Parse error: arrays or objects are nested too deep") from None


def _parse_int(digits: str) -> int | float:
    if len(digits) <= _INTEGER_DIGITS_MAX:
        value = int(digits)
        if _INT64_MIN <= value <= _UINT64_MAX:
            return value
    return _parse_float(digits)


def _parse_float(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        _refuse_number(digits)
    return value


def _refuse_number(digits: str) -> NoReturn:
    shown = digits if len(digits) <= 40 else f"{digits[:40]}…"
    raise InvalidArgument(f"JSON Parse error: Number too big to be stored in double: {shown}")


_decoder = json.JSONDecoder(parse_int=_parse_int, parse_float=_parse_float)


def quoted(value: Any, levels: int = _QUOTED_LEVELS) -> str:
    """A value as an error quotes it: as JSON, of many items or characters the first."""
    if isinstance(value, list):
        inner = [quoted(item, levels - 1) for item in value[:_QUOTED_ITEMS]] if levels else []
        return f"[{', '.join(_with_rest(inner, len(value)))}]"
    if isinstance(value, dict):
        items = list(value.items())[: _QUOTED_ITEMS if levels else 0]
        inner = [f"{quoted(key)}: {quoted(item, levels - 1)}" for key, item in items]
        return f"{{{', '.join(_with_rest(inner, len(value)))}}}"
    if isinstance(value, str) and len(value) > _QUOTED_CHARACTERS:
        value = f"{value[:_QUOTED_CHARACTERS]}…"
    return printable(json.dumps(value, ensure_ascii=False))


def _with_rest(inner: list[str], count: int) -> list[str]:
    return inner if len(inner) == count else [*inner, "…"]


def printable(text: str) -> str:
    """A text in which nothing is that UTF-8 cannot hold, shortened."""
    if len(text) > 4 * _QUOTED_CHARACTERS:
        text = f"{text[: 4 * _QUOTED_CHARACTERS]}…"
    return text.encode(errors="backslashreplace").decode()


def json_type(value: Any) -> str:
    """What JSON calls a value's type, as TensorFlow Serving's errors do."""
    if value is None:
        return "Null"
    if isinstance(value, bool):
        return "True" if value else "False"
    names = ((dict, "Object"), (list, "Array"), (str, "String"))
    return next((name for kind, name in names if isinstance(value, kind)), "Number")
