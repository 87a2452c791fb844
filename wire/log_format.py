"""How an event is written: as ``key=value`` text (logfmt), or as a JSON object; always one line.

Values come from anybody: a client's message, a model's exception. Whatever is in them, a line ends
where its event ends, is valid UTF-8, and can be parsed back.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime

# The journal cuts lines at 48 KiB, and pipes mix up what writers write beyond 4 KiB.
_VALUE_MAX = 1000
_BARE = re.compile(r'[^\s"=\\]+')

Fields = Mapping[str, object]


def as_text(fields: Fields) -> str:
    """``key=value`` for each field. A value that is not plain is quoted as a JSON string."""
    return " ".join([f"{key}={_word(_text(value))}" for key, value in fields.items()])


def as_json(fields: Fields) -> str:
    """A JSON object, in ASCII. Numbers, truth values and null keep their types."""
    return json.dumps({key: plain(value) for key, value in fields.items()})


def timestamp(seconds: float) -> str:
    """A time since 1970 as RFC 3339 has it, in UTC with microseconds."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def plain(value: object) -> object:
    """What is written of a value: a number, a truth value, null, text, or a list of such."""
    if isinstance(value, float):
        # JSON has no word for what is no number.
        return round(value, 6) if math.isfinite(value) else str(value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return _text(value)


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return _shortened(",".join(_text(item) for item in value))
    if isinstance(value, bytes):
        return _shortened(value[:_VALUE_MAX].decode(errors="backslashreplace"))
    try:
        text = str(value)
    except Exception:
        # A model's exception may have a method that raises.
        text = f"{type(value).__name__} without words"
    # Half of a surrogate pair, as file names that are no UTF-8 have it, cannot be written.
    return _shortened(text).encode(errors="backslashreplace").decode()


def _shortened(text: str) -> str:
    return text if len(text) <= _VALUE_MAX else f"{text[:_VALUE_MAX]}…"


def _word(text: str) -> str:
    """As it is, if nothing in it could be taken for something else; else quoted."""
    if text.isprintable() and _BARE.fullmatch(text):
        return text
    return f'"{"".join(map(_escaped, text))}"'


def _escaped(character: str) -> str:
    if character in '"\\' or not character.isprintable():
        # Also what a terminal obeys, and what turns the direction of writing.
        return json.dumps(character)[1:-1]
    return character
