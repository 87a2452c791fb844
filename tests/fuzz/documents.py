"""Documents: what a target is given. Anything that msgpack holds, so that bytes that a fuzzer
makes, values that Hypothesis draws and files of what was found are the same thing."""

from __future__ import annotations

from typing import Any

import msgpack

from batchyard.wire.errors import BatchyardError


class NotADocument(Exception):
    """Not of the form that the target takes: nothing can be learned from it."""


def pack(document: Any) -> bytes:
    """The bytes of a document."""
    packed: bytes = msgpack.packb(document)
    return packed


def unpack(data: bytes) -> Any:
    """The document in ``data``, if there is one."""
    try:
        return msgpack.unpackb(data, raw=False, strict_map_key=False)
    except Exception as error:
        # As in ``wire.protocol``: it raises what it likes.
        raise NotADocument from error


def fields(document: Any, *kinds: type[Any] | tuple[type[Any], ...]) -> list[Any]:
    """The fields of an array of these kinds."""
    if type(document) is not list or len(document) != len(kinds):
        raise NotADocument
    for value, kind in zip(document, kinds, strict=True):
        is_bool = type(value) is bool
        if kind is not object and (not isinstance(value, kind) or is_bool != (kind is bool)):
            raise NotADocument
    return document


def list_of(kind: type[Any], values: list[Any], most: int = 64) -> list[Any]:
    """The values, all of a kind and not too many."""
    if len(values) > most or not all(type(value) is kind for value in values):
        raise NotADocument
    return values


# What a broker may say of any message. Names are bounded, and so is what it says of them; one
# that is all control characters takes ten times its length in a message.
MESSAGE_MAX = 16_384


def refused(error: Exception, *classes: type[Exception], naming: str = "") -> None:
    """Whether a refusal is of one of the classes, with a message that can be sent and read, and
    that says ``naming``."""
    assert type(error) in classes, f"{type(error).__name__} is none of the errors for this"
    text = str(error)
    if isinstance(error, BatchyardError):
        # It travels; what is said of a configuration is for who wrote it.
        text = error.message
        assert isinstance(text, str)
        assert len(text) <= MESSAGE_MAX, f"the message has {len(text)} characters"
    assert text.strip(), "the message says nothing"
    assert naming in text
