"""``docs/logs.md`` lists every event that the source can log, with its level, its process and its
fields."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchyard.wire import log

ROOT = Path(__file__).parent.parent
FOLDERS = ("wire", "pool", "broker", "clients", "cli")
# Whose methods log, each a level.
_LOGGERS = {f"{logger}.{level}" for logger in ("log", "self._quiet") for level in log.LEVELS}
# What every line has: a field of such a name would hide it.
RESERVED = {"time", "level", "process", "pid", "event"}


def logged() -> Iterator[tuple[str, str, set[str]]]:
    """Level, event and fields of each call that logs, as far as it names them."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if path.name == "log.py":
                continue
            constants: dict[str, str] = {}
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
                    constants |= {ast.unparse(t): str(node.value.value) for t in node.targets}
                if isinstance(node, ast.Call):
                    yield from _of_call(node, constants)


def _of_call(call: ast.Call, constants: dict[str, str]) -> Iterator[tuple[str, str, set[str]]]:
    name = ast.unparse(call.func)
    fields = {keyword.arg for keyword in call.keywords if keyword.arg}
    if ast.unparse(call.args[0] if call.args else call) == "event":
        # Who passes on what others say.
        return
    if name in _LOGGERS:
        levels, events = [name.split(".")[-1]], _strings(call.args[0], constants)
    elif name == "log.limited" or (name == "Log" and len(call.args) == 3):
        if isinstance(call.args[-1], ast.Dict):
            fields |= {ast.literal_eval(key) for key in call.args[-1].keys if key is not None}
        levels, events = _strings(call.args[0], constants), _strings(call.args[1], constants)
    else:
        return
    # A level and an event that depend on the same thing are written in the same order.
    levels = levels * len(events) if len(levels) == 1 else levels
    for level, event in zip(levels, events, strict=True):
        yield level, event, fields


def _strings(node: ast.expr, constants: dict[str, str]) -> list[str]:
    if isinstance(node, ast.Constant):
        return [str(node.value)]
    if isinstance(node, ast.IfExp):
        return [*_strings(node.body, constants), *_strings(node.orelse, constants)]
    return [constants[ast.unparse(node)]]


def documented() -> dict[str, tuple[set[str], set[str]]]:
    """Levels and fields of each event in the table."""
    table: dict[str, tuple[set[str], set[str]]] = {}
    for line in (ROOT / "docs" / "logs.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) == 7 and cells[2] in log.LEVELS:
            event = cells[1].strip("`")
            assert event not in table, event
            table[event] = {cells[2]}, set(re.findall(r"`(\w+)`", cells[4]))
    return table


def test_every_event_is_documented() -> None:
    # Those that ``wire/log.py`` makes itself.
    own = {"crashed": {"error"}, "message": {"warning"}, "lines_lost": {"warning"}}
    found: dict[str, set[str]] = dict(own)
    for level, event, _ in logged():
        found.setdefault(event, set()).add(level)
    assert found == {event: levels for event, (levels, _) in documented().items()}


def test_every_field_is_documented() -> None:
    table = documented()
    for _, event, fields in logged():
        assert fields <= table[event][1], event
        assert not fields & RESERVED, event


@pytest.mark.parametrize("name", ["log.info('a', b=1)", "log.limited('info', 'a', b=1)"])
def test_calls_are_found(name: str) -> None:
    call = ast.parse(name, mode="eval").body
    assert isinstance(call, ast.Call)
    assert list(_of_call(call, {})) == [("info", "a", {"b"})]
