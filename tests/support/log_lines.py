"""Reads log lines back: of the text form by its own short grammar, of the JSON form by json."""

from __future__ import annotations

import json
import re
from typing import Any

_PAIR = re.compile(r'([a-z_][a-z0-9_]*)=("(?:[^"\\]|\\.)*"|[^\s"=\\]+)(?: |$)')


def parse_text(line: str) -> dict[str, str]:
    """The fields of a line of logfmt, as strings. AssertionError for what is none."""
    fields: dict[str, str] = {}
    place = 0
    while place < len(line):
        match = _PAIR.match(line, place)
        assert match is not None, f"no key=value at {place} of {line!r}"
        key, value = match.groups()
        assert key not in fields, f"{key} stands twice in {line!r}"
        fields[key] = json.loads(value) if value.startswith('"') else value
        place = match.end()
    return fields


def events(log: str, event: str) -> list[dict[str, Any]]:
    """The fields of all lines of that event, of a log in either form, which others write to too."""
    found: list[dict[str, Any]] = []
    for line in log.splitlines():
        if line.startswith("{"):
            fields = json.loads(line)
        elif line.startswith("time="):
            fields = parse_text(line)
        else:
            continue
        if fields.get("event") == event:
            found.append(fields)
    return found
