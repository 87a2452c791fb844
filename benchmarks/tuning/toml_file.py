"""The user's configuration file with what was tuned in it, and all else as it was."""

from __future__ import annotations

import textwrap
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.items import AoT, Comment, Table, Trivia, Whitespace

from batchyard.benchmarks.tuning.bench import Setting
from batchyard.wire.errors import ConfigurationError

# By this a later run knows, and replaces, what an earlier one wrote.
_MARK = "# tuned: "
_CONTINUED = "#        "
_WIDTH = 96


def read(path: Path) -> tomlkit.TOMLDocument:
    """A file as it is, comments and all. Raises ConfigurationError."""
    try:
        return tomlkit.parse(path.read_text())
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigurationError(f"{path}: not TOML: {error}") from None


def of_model(name: str, path: str, *, python: bool) -> tomlkit.TOMLDocument:
    """A file that serves one model."""
    model = tomlkit.table()
    model["name"] = name
    model["path"] = path
    if python:
        model["runtime"] = "python"
    document = tomlkit.document()
    document["models"] = tomlkit.aot()
    document["models"].append(model)
    return document


def set_workers(document: tomlkit.TOMLDocument, groups: list[dict[str, Any]]) -> None:
    """Has the file say these ``[[pool.workers]]``, instead of those that it says."""
    tables = tomlkit.aot()
    for group in groups:
        tables.append(tomlkit.item(group))
    if "pool" not in document:
        document["pool"] = tomlkit.table(is_super_table=True)
    document["pool"]["workers"] = tables


def batching_of(setting: Setting) -> dict[str, Any]:
    """Its keys of ``[models.batching]``; None for those that the file had better not name."""
    return {
        "max_batch_size": setting.max_batch_size,
        "batch_timeout_micros": setting.batch_timeout_micros,
        "max_enqueued_batches": setting.max_enqueued_batches,
        "num_batch_threads": setting.num_batch_threads,
        "allowed_batch_sizes": list(setting.allowed_batch_sizes) or None,
    }


def tuned(
    document: tomlkit.TOMLDocument,
    model: str,
    setting: Setting,
    reasons: Mapping[str, str],
) -> str:
    """The file with a model's setting, and over each key the reason for it."""
    wanted = document.unwrap()
    values = batching_of(setting)
    table = next(m for m in document["models"] if m["name"] == model)
    kept = _kept(table.get("batching"), values)
    plain = {key: value for key, value in values.items() if value is not None}
    if isinstance(document["models"], AoT):
        batching = tomlkit.table()
        for key, item in kept:
            if key is None:
                batching.add(item)
            else:
                batching.add(key, item)
        for key, value in plain.items():
            for line in _comment(reasons.get(key, "")):
                batching.add(Comment(_trivia(line)))
            batching.add(key, value)
        batching.add(tomlkit.nl())
        table.pop("batching", None)
        table["batching"] = batching
    else:
        table["batching"] = {**{str(key): item for key, item in kept if key}, **plain}
    text = tomlkit.dumps(document).rstrip("\n").replace("\n\n\n", "\n\n") + "\n"
    _check(text, wanted, model, values)
    return text


def _kept(batching: Any, values: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    """What stays of a ``[models.batching]``: other keys, and comments that are not the tuner's."""
    if not isinstance(batching, Table):
        # One that stands in a line, or dotted keys.
        return [(k, v) for k, v in dict(batching or {}).items() if k not in values]
    kept: list[tuple[Any, Any]] = []
    ours = False
    for key, item in batching.value.body:
        if isinstance(item, Comment):
            text = item.as_string().lstrip()
            ours = text.startswith(_MARK) or (ours and text.startswith(_CONTINUED))
            if ours:
                continue
        elif isinstance(item, Whitespace):
            # What stood between keys that are gone.
            continue
        else:
            ours = False
        if key is None or key.key not in values:
            kept.append((None if key is None else key.key, item))
    return kept


def _comment(reason: str) -> list[str]:
    if not reason:
        return []
    return textwrap.wrap(
        reason, _WIDTH, initial_indent=_MARK, subsequent_indent=_CONTINUED, break_long_words=False
    )


def _trivia(text: str) -> Trivia:
    return Trivia(indent="", comment_ws="", comment=text, trail="\n")


def _check(text: str, wanted: dict[str, Any], model: str, values: Mapping[str, Any]) -> None:
    """That a reader finds what was meant, and nothing else changed."""
    for table in wanted["models"]:
        if table["name"] == model:
            batching = {**table.get("batching", {}), **values}
            table["batching"] = {k: v for k, v in batching.items() if v is not None}
    if tomllib.loads(text) != wanted:
        raise ConfigurationError("the file cannot be rewritten; --out with another file may help")
