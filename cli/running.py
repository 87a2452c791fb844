"""Runs a server in this process until it is stopped: what ``serve`` and ``tfs`` have in common."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NoReturn

from batchyard.cli.serving import plan
from batchyard.cli.startup_line import StartupLine
from batchyard.pool.plan import ServerPlan
from batchyard.pool.service_manager import ServiceManager
from batchyard.pool.supervisor import ServerFailed, Supervisor
from batchyard.pool.watch import Reload
from batchyard.wire import log
from batchyard.wire.control import EXIT_CONFIGURATION, EXIT_DEVICE, PARENT_SIGNALS
from batchyard.wire.errors import ConfigurationError, DeviceAbsent
from batchyard.wire.log import LogSettings


def run(load: Reload, settings: LogSettings) -> None:
    """Serves what ``load`` says, which is called again to reload. ``settings`` are for the log.

    Prints one line when every worker is ready. Exits with what a server ends with, unless it is 0.
    """
    # What children are started with must not have it.
    service_manager = ServiceManager.from_environment()
    # A watchdog ends a server that hangs by SIGABRT: the log then says where it hung.
    with contextlib.suppress(RuntimeError, OSError):
        # Without a standard error there is nowhere to say it.
        faulthandler.enable()
    try:
        server_plan, notes = plan(load(None))
    except ConfigurationError as error:
        service_manager.tell({"STATUS": f"Refused: {error}"})
        is_absent = isinstance(error, DeviceAbsent)
        _end(EXIT_DEVICE if is_absent else EXIT_CONFIGURATION, str(error), settings)
    os.environ.update(settings.to_environment())
    progress = StartupLine(is_wanted=settings.format == "text")

    def ready(endpoints: Sequence[str], gateways: Mapping[str, str]) -> None:
        progress.end()
        print(_ready_line(server_plan, endpoints, gateways), flush=True)

    try:
        # Taken while it runs; in the moments around that they must not end the process by default.
        signal.pthread_sigmask(signal.SIG_BLOCK, PARENT_SIGNALS)
        with progress:
            Supervisor(server_plan, ready, load, service_manager, progress, notes).run()
        log.info("stopped")
    except ServerFailed as error:
        service_manager.tell({"STATUS": f"Failed: {error}"})
        _end(error.exit_code, str(error), settings)


def _ready_line(
    server_plan: ServerPlan, endpoints: Sequence[str], gateways: Mapping[str, str]
) -> str:
    models = ",".join(f"{model.name}:{model.version}" for model in server_plan.broker.models)
    devices = Counter(worker.settings.device for worker in server_plan.workers)
    where = ",".join(f"{device}x{count}" for device, count in sorted(devices.items()))
    places = (f" {name}={address}" for name, address in gateways.items())
    return f"event=ready endpoints={','.join(endpoints)} models={models} devices={where}" + "".join(
        places
    )


def _end(exit_code: int, reason: str, settings: LogSettings) -> NoReturn:
    """Says why and exits: to a program, or to the journal, as an event; to a person in lines."""
    if settings.format == "json" or log.is_journal():
        log.error("server_failed", exit_code=exit_code, reason=reason)
    else:
        for line in reason.splitlines():
            print(f"batchyard: {line}", file=sys.stderr)
    sys.exit(exit_code)
