"""``batchyard tfs``: a server for those who start ``tensorflow_model_server`` today."""

from __future__ import annotations

import contextlib
from importlib import metadata
from typing import Any

import click
from pydantic import ValidationError

from batchyard.cli.running import run
from batchyard.cli.serving import refuse
from batchyard.cli.tensorflow_serving import configuration, flags
from batchyard.cli.tensorflow_serving.toml_text import toml_text
from batchyard.pool.config import Log
from batchyard.wire import log
from batchyard.wire.errors import ConfigurationError
from batchyard.wire.log import LogSettings
from batchyard.wire.version import version

_TENSORFLOWS = ("tensorflow", "tensorflow-cpu")


@click.command()
@flags.options
def command(**given: Any) -> None:
    """Serve as tensorflow_model_server does: with its flags, files, ports and clients.

    Each flag does what it does there, or it says here what differs; none is ignored without a
    word. Booleans are --flag, --flag=true or --flag=false. Prints one line when all models are
    loaded. SIGTERM or Ctrl-C finishes what was accepted and stops; SIGHUP reads the files again.
    See docs/tensorflow-serving.md.

    Exits with 0 when it was stopped, 2 for flags or files that cannot work, 3 without TensorFlow
    or the device, 4 when a model does not load, 1 for all else.
    """
    if given["version"]:
        click.echo(_versions())
        return
    if given["print_config"]:
        try:
            click.echo(toml_text(configuration.load_config(given)), nl=False)
        except ConfigurationError as error:
            refuse(error)
        return
    settings = log.configure("supervisor", _log_settings(given))
    for name, here in flags.without_effect(given):
        log.info("flag_without_effect", flag=name, reason=here)
    run(lambda models: configuration.load_config(given, models), settings)


def _log_settings(given: dict[str, Any]) -> LogSettings:
    """How to say what is wrong with flags: as they say themselves, as far as that is right."""
    with contextlib.suppress(ValidationError):
        return Log.model_validate(configuration.log_table(given)).settings
    return LogSettings()


def _versions() -> str:
    lines = [f"Batchyard: {version()}"]
    for name in _TENSORFLOWS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            lines.append(f"TensorFlow Library: {metadata.version(name)}")
            break
    return "\n".join(lines)
