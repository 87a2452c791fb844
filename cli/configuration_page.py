"""Writes ``docs/configuration.md`` from the configuration's one definition.

``make docs`` runs it; a test checks that the page is current.
"""

from __future__ import annotations

import json
import types
import typing
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from batchyard.pool import config, config_gateways, config_models

_SECTIONS: list[tuple[str, type[BaseModel]]] = [
    ("[broker]", config.Broker),
    ("[pool]", config.Pool),
    ("[[pool.workers]]", config.WorkerGroup),
    ("[rest]", config_gateways.Rest),
    ("[grpc]", config_gateways.Grpc),
    ("[metrics]", config_gateways.Metrics),
    ("[log]", config.Log),
    ("[[models]]", config_models.Model),
    ("[models.batching]", config_models.Batching),
    ("[models.signature]", config_models.Signature),
    ("[models.signature.inputs.NAME], [models.signature.outputs.NAME]", config_models.Tensor),
]
_INTRODUCTION = """\
# Configuration

<!-- Written by `make docs` from pool/config.py. Edit that, not this. -->

`batchyard serve CONFIG.toml` reads TOML; most keys are also options of `batchyard serve`
(`batchyard serve --help`). `batchyard check CONFIG.toml` says what a configuration comes to on
this machine, and everything that is wrong with it. Names are TensorFlow Serving's for every knob
that it has.

```toml
[broker]
bind = ["tcp://127.0.0.1:8600"]

[pool]
arena_mb = 512

[[pool.workers]]
device = "gpu:0"
count = 2
per_process_gpu_memory_fraction = 0.45

[[models]]
name = "resnet"
path = "/models/resnet"

[models.batching]
max_batch_size = 64
batch_timeout_micros = 2000
allowed_batch_sizes = [1, 2, 4, 8, 16, 32, 64]
```

What belongs together on the command line: batching options are for the models given by
`--model`; worker options make groups of workers, one for each `--device`, that replace those of
the file; the others replace the file's value.
"""


def render() -> str:
    """The page."""
    parts = [_INTRODUCTION]
    for title, section in _SECTIONS:
        summary = (section.__doc__ or "").partition(": ")[2].partition("\n")[0]
        parts.append(f"\n## `{title}`\n\n{summary[:1].upper()}{summary[1:]}\n\n" + _table(section))
    return "".join(parts)


def _table(section: type[BaseModel]) -> str:
    lines = ["| key | type | default | |\n|---|---|---|---|\n"]
    for name, field in section.model_fields.items():
        description = (field.description or "").replace("|", "\\|")
        lines.append(
            f"| `{name}` | {_type(field.annotation)} | {_default(field)} | {description} |\n"
        )
    return "".join(lines)


def _type(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type(a) for a in arguments if a is not type(None))
    if origin is typing.Annotated:
        return _type(arguments[0])
    if origin is typing.Literal:
        return " or ".join(f"`{json.dumps(value)}`" for value in arguments)
    if origin is list:
        return f"list of {_type(arguments[0])}"
    if origin is dict or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return "table"
    names = {int: "integer", str: "string", bool: "true or false", float: "number"}
    return names[annotation]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "needed"
    value = field.get_default()
    if value is None or field.default_factory is not None or isinstance(value, BaseModel):
        return ""
    if isinstance(value, list) and value and isinstance(value[0], BaseModel):
        return ""
    return f"`{json.dumps(value)}`"


if __name__ == "__main__":
    print(render(), end="")
