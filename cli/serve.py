"""``batchyard serve``: runs a server until SIGTERM or SIGINT."""

from __future__ import annotations

import signal
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import click

from batchyard.cli.serving import load_config, plan, refuse, serving_arguments
from batchyard.cli.startup_line import StartupLine
from batchyard.pool.supervisor import ServerFailed, Supervisor
from batchyard.wire import log
from batchyard.wire.control import PARENT_SIGNALS
from batchyard.wire.errors import ConfigurationError


@click.command()
@serving_arguments
def command(**options: Any) -> None:
    """Serve models: those of CONFIG.toml, and each --model.

    Prints one line when every worker has loaded and warmed up every model. SIGTERM or Ctrl-C
    finishes what was accepted and stops; a second one stops at once. SIGHUP reads the
    configuration again.
    """
    log.configure("supervisor")
    try:
        server_plan, notes = plan(load_config(options))
    except ConfigurationError as error:
        refuse(error)
    for note in notes:
        log.info("device_chosen", note=note)
    models = ",".join(f"{model.name}:{model.version}" for model in server_plan.broker.models)
    devices = Counter(worker.settings.device for worker in server_plan.workers)

    progress = StartupLine()

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
            Supervisor(server_plan, ready, lambda: load_config(options), progress).run()
    except ServerFailed as error:
        for line in str(error).splitlines():
            print(f"batchyard: {line}", file=sys.stderr)
        sys.exit(error.exit_code)
