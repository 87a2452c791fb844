"""``batchyard serve``: runs a server until SIGTERM or SIGINT."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import click

from batchyard.cli.serving import early_log_settings, load_config, plan, serving_arguments
from batchyard.cli.startup_line import StartupLine
from batchyard.pool.service_manager import ServiceManager
from batchyard.pool.supervisor import ServerFailed, Supervisor
from batchyard.wire import log
from batchyard.wire.control import EXIT_CONFIGURATION, PARENT_SIGNALS
from batchyard.wire.errors import ConfigurationError
from batchyard.wire.log import LogSettings


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
    # What children are started with must not have it.
    service_manager = ServiceManager.from_environment()
    # A watchdog ends a server that hangs by SIGABRT: the log then says where it hung.
    with contextlib.suppress(RuntimeError, OSError):
        # Without a standard error there is nowhere to say it.
        faulthandler.enable()
    try:
        server_plan, notes = plan(load_config(options))
    except ConfigurationError as error:
        service_manager.tell({"STATUS": f"Refused: {error}"})
        _end(EXIT_CONFIGURATION, str(error), settings)
    os.environ.update(settings.to_environment())
    models = ",".join(f"{model.name}:{model.version}" for model in server_plan.broker.models)
    devices = Counter(worker.settings.device for worker in server_plan.workers)

    progress = StartupLine(is_wanted=settings.format == "text")

    def ready(endpoints: Sequence[str], gateways: Mapping[str, str]) -> None:
        progress.end()
        where = ",".join(f"{device}x{count}" for device, count in sorted(devices.items()))
        print(
            f"event=ready endpoints={','.join(endpoints)} models={models} devices={where}",
            *(f"{name}={address}" for name, address in gateways.items()),
            flush=True,
        )

    try:
        # Taken while it runs; in the moments around that they must not end the process by default.
        signal.pthread_sigmask(signal.SIG_BLOCK, PARENT_SIGNALS)
        with progress:
            Supervisor(
                server_plan,
                ready,
                lambda models: load_config(options, models),
                service_manager,
                progress,
                notes,
            ).run()
        log.info("stopped")
    except ServerFailed as error:
        service_manager.tell({"STATUS": f"Failed: {error}"})
        _end(error.exit_code, str(error), settings)


def _end(exit_code: int, reason: str, settings: LogSettings) -> NoReturn:
    """Says why and exits: to a program, or to the journal, as an event; to a person in lines."""
    if settings.format == "json" or log.is_journal():
        log.error("server_failed", exit_code=exit_code, reason=reason)
    else:
        for line in reason.splitlines():
            print(f"batchyard: {line}", file=sys.stderr)
    sys.exit(exit_code)
