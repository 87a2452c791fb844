"""What a path asks for, as TensorFlow Serving reads it. Pure.

Its patterns meet the whole target, query and all, and take letters of either case; but the verb
behind the colon, and ``metadata``, count only in lower case.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal, NamedTuple
from urllib.parse import unquote_to_bytes

from batchyard.wire.errors import InvalidArgument

Verb = Literal["predict", "classify", "regress", "status", "metadata"]

_VERSION = r"(?:(?:/versions/([0-9]+))|(?:/labels/([^/:]+)))?"
_POST = re.compile(rf"/v1/models/([^/:]+){_VERSION}:(classify|regress|predict)", re.I | re.A)
_GET = re.compile(rf"/v1/models(?:/([^/:]+))?{_VERSION}(?:/(metadata))?", re.I | re.A)
_SERVED = re.compile(r"/v1/[^\n]*", re.I | re.A)
_ABSOLUTE = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#]*", re.I | re.A)
_VERBS: dict[str, Verb] = {"predict": "predict", "classify": "classify", "regress": "regress"}
_INT64_MAX = (1 << 63) - 1
# Targets that are remembered: clients ask for the same few again and again.
_REMEMBERED = 1024


class ModelPath(NamedTuple):
    """A model, at most one of version and label, and what is wanted of it."""

    verb: Verb
    name: str
    version: int | None
    label: str | None


def path_of(target: bytes) -> str:
    """The path and query of a request's target, which may be a whole URL, as proxies get them."""
    text = target.decode("latin-1")
    if not text.startswith("/"):
        absolute = _ABSOLUTE.match(text)
        if absolute is not None:
            text = text[absolute.end() :]
            return text if text.startswith("/") else f"/{text}"
    return text


def is_served(path: str) -> bool:
    """Whether this is a path of the interface at all, well-formed or not."""
    return _SERVED.fullmatch(path) is not None


@lru_cache(_REMEMBERED)
def parse(method: str, path: str) -> ModelPath:
    """What is asked for. Raises InvalidArgument with TensorFlow Serving's words."""
    verb: Verb | None = None
    if method == "POST":
        found = _POST.fullmatch(path)
        if found is not None:
            verb = _VERBS.get(found[4])
    elif method == "GET":
        found = _GET.fullmatch(path)
        verb = "metadata" if found is not None and found[4] == "metadata" else "status"
    else:
        found = None
    if found is None:
        raise InvalidArgument(f"Malformed request: {method} {path}")
    version = _version(found[2])
    if verb is None:
        raise InvalidArgument(f"Malformed request: {method} {path}")
    if found[1] is None:
        raise InvalidArgument("Missing model name in request.")
    return ModelPath(verb, _unescape(found[1]), version, found[3] and _unescape(found[3]))


def _version(digits: str | None) -> int | None:
    if digits is None:
        return None
    # Python itself refuses to read thousands of digits.
    if len(digits.lstrip("0")) > len(str(_INT64_MAX)) or int(digits) > _INT64_MAX:
        raise InvalidArgument(f"Failed to convert version: {digits} to numeric.")
    return int(digits)


def _unescape(part: str) -> str:
    """Percent signs that begin no two hex digits stay, as in libcurl."""
    return unquote_to_bytes(part.encode("latin-1")).decode("utf-8", "replace")
