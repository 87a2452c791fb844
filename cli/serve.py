"""``batchyard serve``: runs a server until SIGTERM or SIGINT."""

from __future__ import annotations

import contextlib
import faulthandler
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import click

from batchyard.cli.serving import load_config, plan, refuse, serving_arguments
from batchyard.pool.service_manager import ServiceManager
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
    configuration again. systemd is told how it fares (Type=notify); see install-service.
    """
    log.configure("supervisor")
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
        refuse(error)
    for note in notes:
        log.info("device_chosen", note=note)
    models = ",".join(f"{model.name}:{model.version}" for model in server_plan.broker.models)
    devices = Counter(worker.settings.device for worker in server_plan.workers)

    def ready(endpoints: Sequence[str]) -> None:
        where = ",".join(f"{device}x{count}" for device, count in sorted(devices.items()))
        print(
            f"event=ready endpoints={','.join(endpoints)} models={models} devices={where}",
            flush=True,
        )

    try:
        # Taken while it runs; in the moments around that they must not end the process by default.
        signal.pthread_sigmask(signal.SIG_BLOCK, PARENT_SIGNALS)
        Supervisor(server_plan, ready, lambda: load_config(options), service_manager).run()
    except ServerFailed as error:
        service_manager.tell({"STATUS": f"Failed: {error}"})
        for line in str(error).splitlines():
            print(f"batchyard: {line}", file=sys.stderr)
        sys.exit(error.exit_code)
