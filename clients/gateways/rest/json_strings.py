"""Strings of tensors in JSON: as text, or ``{"b64": …}``."""

from __future__ import annotations

import binascii
import re
from typing import Any

from batchyard.clients.gateways.rest.json_document import quoted
from batchyard.wire.errors import InvalidArgument

_B64 = "b64"
_SPACE = re.compile(r"[ \t\n\v\f\r]+")
_BASE64 = re.compile(r"([A-Za-z0-9+/]*)([=.]{0,2})")
# What JSON escapes within a string.
_SPECIAL = re.compile(rb'[\x00-\x1f"\\]')
_SHORT = {8: b"\\b", 9: b"\\t", 10: b"\\n", 12: b"\\f", 13: b"\\r", 34: b'\\"', 92: b"\\\\"}
_ESCAPES = {bytes([code]): _SHORT.get(code, b"\\u%04X" % code) for code in (*range(32), *b'"\\')}


def is_base64(value: Any) -> bool:
    """Whether a value is ``{"b64": "…"}`` and nothing else."""
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get(_B64), str)


def from_json(value: str | dict[str, Any]) -> bytes:
    """The bytes of a string, or of ``{"b64": …}``. Raises InvalidArgument."""
    if isinstance(value, str):
        try:
            return value.encode()
        except UnicodeEncodeError:
            return _raw(value)
    if not is_base64(value):
        raise InvalidArgument(
            f"JSON Value: {quoted(value)} not formatted correctly for base64 data"
        )
    try:
        return binascii.a2b_base64(value[_B64], strict_mode=True)
    except ValueError:
        return _unpadded(value[_B64])


def _raw(value: str) -> bytes:
    """The bytes of a string that was not UTF-8."""
    try:
        return value.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        raise InvalidArgument(f"The surrogate pair in {quoted(value)} is invalid") from None


def _unpadded(text: str) -> bytes:
    """Base64 with spaces in it, or without its padding."""
    match = _BASE64.fullmatch(_SPACE.sub("", text))
    if match is not None:
        digits, padding = match.groups()
        missing = -len(digits) % 4
        if missing < 3 and len(padding) in (0, missing):
            return binascii.a2b_base64(digits + "=" * missing)
    raise InvalidArgument(f"Unable to base64 decode {quoted(text)}")


def text(value: bytes) -> bytes:
    """A JSON string. Bytes that are not UTF-8 stay what they are, as in TensorFlow Serving."""
    return b'"%b"' % _SPECIAL.sub(_escape, value)


def _escape(match: re.Match[bytes]) -> bytes:
    return _ESCAPES[match[0]]


def base64_text(value: bytes) -> bytes:
    """A JSON string of base64."""
    return b'"%b"' % binascii.b2a_base64(value, newline=False)
