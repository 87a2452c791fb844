"""``batchyard serve``: runs a server until SIGTERM or SIGINT."""

from __future__ import annotations

from typing import Any

import click

from batchyard.cli.running import run
from batchyard.cli.serving import early_log_settings, load_config, serving_arguments
from batchyard.wire import log


@click.command()
@serving_arguments
def command(**options: Any) -> None:
    """Serve models: those of CONFIG.toml, and each --model.

    Prints one line when every worker has loaded and warmed up every model. SIGTERM or Ctrl-C
    finishes what was accepted and stops; a second one, half a second later or more, stops at
    once. SIGHUP reads the configuration again. systemd is told how it fares (Type=notify); see
    install-service.

    Options for batching are for the models that --model adds. Those for workers make groups, one
    for each --device, that replace the file's. All others replace what the file says.

    Exits with 0 when it was stopped, 2 for a configuration that cannot work, 3 without TensorFlow
    or the device, 4 when a model does not load, 1 for all else.
    """
    settings = log.configure("supervisor", early_log_settings(options))
    run(lambda models: load_config(options, models), settings)
