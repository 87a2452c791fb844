"""A configuration as the text of a file for ``batchyard serve``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from batchyard.pool.config import Config

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def toml_text(config: Config) -> str:
    """TOML, without what is as it is by default anyway."""
    return "\n".join(_lines(config.model_dump(exclude_defaults=True), "")).strip() + "\n"


def _lines(table: Mapping[str, Any], name: str) -> Iterator[str]:
    """A table's own keys, then the tables in it; ``name`` is what is before these' names."""
    tables = {key: value for key, value in table.items() if _is_table(value)}
    for key, value in table.items():
        if key not in tables:
            yield f"{_key(key)} = {_value(value)}"
    for key, value in tables.items():
        place = f"{name}{_key(key)}"
        for part in value if isinstance(value, list) else [value]:
            yield ""
            yield f"[[{place}]]" if isinstance(value, list) else f"[{place}]"
            yield from _lines(part, f"{place}.")


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping) or (
        isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)
    )


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _value(key)


def _value(value: Any) -> str:
    # As JSON has it, but for a character that only TOML has escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
