"""The arguments by which ``serve`` and ``check`` are told what to serve, and their plan."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click
from pydantic import BaseModel, ValidationError

from batchyard.cli.options import given, options_for
from batchyard.pool.config import (
    Broker,
    Config,
    Log,
    Pool,
    WorkerGroup,
    read_toml,
    served_instead,
    validate,
)
from batchyard.pool.config_gateways import Grpc, Metrics, Rest
from batchyard.pool.config_models import Batching
from batchyard.pool.inventory import read_inventory
from batchyard.pool.plan import ServerPlan, make_plan, usable_cpus
from batchyard.wire.control import EXIT_CONFIGURATION
from batchyard.wire.errors import ConfigurationError
from batchyard.wire.log import LogSettings

F = TypeVar("F", bound=Callable[..., Any])

_BATCHING = list(Batching.model_fields)
_WORKER = [name for name in WorkerGroup.model_fields if name not in ("device", "count")]
_WORKER.remove("cpu_affinity")
_POOL = [name for name in Pool.model_fields if name != "workers"]
_BROKER = [name for name in Broker.model_fields if name != "bind"]
# By their tables' names: their options have these before their own.
_GATEWAYS: dict[str, tuple[type[BaseModel], list[str]]] = {
    "rest": (Rest, list(Rest.model_fields)),
    "grpc": (Grpc, [name for name in Grpc.model_fields if name != "channel_arguments"]),
    "metrics": (Metrics, list(Metrics.model_fields)),
}
_LOG_PREFIX = "log_"
_LOG_PREFIXED = ["format", "level"]
_LOG = [name for name in Log.model_fields if name not in _LOG_PREFIXED]


def serving_arguments(function: F) -> F:
    """Adds CONFIG.toml and every option."""
    for decorate in reversed(
        [
            click.argument("config", type=click.Path(path_type=Path), required=False),
            click.option(
                "--model",
                "models",
                multiple=True,
                metavar="NAME=PATH",
                help="A SavedModel, or a folder of versions, to serve. May be given again. "
                "NAME=module:callable serves a Python function.",
            ),
            click.option("--workers", type=int, help="Workers, on each --device."),
            click.option(
                "--device",
                "devices",
                multiple=True,
                help=f"{WorkerGroup.model_fields['device'].description} May be given again.",
            ),
            click.option(
                "--bind",
                multiple=True,
                metavar="ENDPOINT",
                help=f"{Broker.model_fields['bind'].description} May be given again.",
            ),
            options_for(WorkerGroup, _WORKER),
            options_for(Batching, _BATCHING),
            options_for(Pool, _POOL),
            options_for(Broker, _BROKER),
            *(
                options_for(section, names, f"{table}_")
                for table, (section, names) in _GATEWAYS.items()
            ),
            options_for(Log, _LOG_PREFIXED, _LOG_PREFIX),
            options_for(Log, _LOG),
        ]
    ):
        function = decorate(function)
    return function


def load_config(options: dict[str, Any], models: Sequence[dict[str, Any]] | None = None) -> Config:
    """The configuration in a file, with what the command line says on top.

    Batching options are for the models that ``--model`` adds; worker options make worker groups
    that replace the file's. ``models`` are served instead of all others, if they are given. Raises
    ConfigurationError.
    """
    path: Path | None = options["config"]
    tables = read_toml(path) if path is not None else {}
    batching = given(options, _BATCHING)
    if batching and not options["models"]:
        raise ConfigurationError(
            f"--{next(iter(batching)).replace('_', '-')} is for models given by --model; in "
            "CONFIG.toml each model has its own [models.batching]"
        )
    added = [_model(argument, batching) for argument in options["models"]]
    if added:
        tables["models"] = _merged(tables.get("models"), added)
    if path is None and not added:
        raise ConfigurationError("no model to serve: give --model NAME=PATH, or a CONFIG.toml")
    workers = _worker_groups(options)
    pool = {**given(options, _POOL), **({"workers": workers} if workers else {})}
    broker = given(options, _BROKER)
    if options["bind"]:
        broker["bind"] = list(options["bind"])
    sections = {"pool": pool, "broker": broker, "log": _log(options)}
    for table, (_, names) in _GATEWAYS.items():
        sections[table] = given(options, names, f"{table}_")
    if models is not None:
        tables["models"] = served_instead(tables.get("models"), models)
    for section, values in sections.items():
        if values:
            tables[section] = _merged(tables.get(section), values)
    return validate(tables, str(path or "command line"))


def early_log_settings(options: dict[str, Any]) -> LogSettings:
    """How to say what is wrong with a configuration: as it says itself, as far as that is right."""
    with contextlib.suppress(ConfigurationError, ValidationError, AttributeError):
        table = read_toml(options["config"]).get("log", {}) if options["config"] else {}
        return Log.model_validate(_merged(table, _log(options))).settings
    with contextlib.suppress(ValidationError):
        return Log.model_validate(_log(options)).settings
    return LogSettings()


def _log(options: dict[str, Any]) -> dict[str, Any]:
    return {**given(options, _LOG_PREFIXED, _LOG_PREFIX), **given(options, _LOG)}


def _merged(value: Any, more: Any) -> Any:
    """The file's value with more in it; as it is, when it is refused anyway."""
    if value is None:
        return more
    if isinstance(value, dict) and isinstance(more, dict):
        return {**value, **more}
    return [*value, *more] if isinstance(value, list) and isinstance(more, list) else value


def plan(config: Config) -> tuple[ServerPlan, list[str]]:
    """The plan for this machine, and notes on it. Raises ConfigurationError."""
    return make_plan(config, read_inventory(), os.environ, usable_cpus())


def refuse(error: ConfigurationError) -> NoReturn:
    """Tells what is wrong and exits with 2."""
    for line in str(error).splitlines():
        print(f"batchyard: {line}", file=sys.stderr)
    sys.exit(EXIT_CONFIGURATION)


def _model(argument: str, batching: dict[str, Any]) -> dict[str, Any]:
    name, separator, path = argument.partition("=")
    if not separator or not name or not path:
        raise ConfigurationError(f"--model {argument}: must be NAME=PATH")
    model = {"name": name, "path": path, "batching": batching}
    if ":" in path and not Path(path).exists():
        model["runtime"] = "python"
    return model


def _worker_groups(options: dict[str, Any]) -> list[dict[str, Any]]:
    settings = given(options, _WORKER)
    if options["workers"] is not None:
        settings["count"] = options["workers"]
    devices = options["devices"]
    if not devices and not settings:
        return []
    return [{"device": device, **settings} for device in devices or ("auto",)]
