"""The broker process: ``python -m batchyard.broker CONTROL_FD PARENT_PID``, by the supervisor."""

from __future__ import annotations

import os
import resource
import select
import sys

from batchyard.broker.catalog import Catalog
from batchyard.broker.front import Front
from batchyard.broker.local_front import LocalFront
from batchyard.broker.loop import BrokerLoop
from batchyard.broker.settings import served_models
from batchyard.broker.state import BrokerState
from batchyard.wire import control, log, work
from batchyard.wire.access import Access
from batchyard.wire.arena import Mapping
from batchyard.wire.control import BrokerSettings
from batchyard.wire.errors import ConfigurationError
from batchyard.wire.keys import read_key_pair
from batchyard.wire.link import Link, LinkClosed
from batchyard.wire.log import LogSettings


def main(control_fd: int, parent_pid: int) -> int:
    """Serves until the supervisor is gone or has had it drained; the exit code."""
    control.die_with_parent(parent_pid)
    control.leave_signals_to_parent()
    logs = log.configure("broker")
    # Each connection takes a descriptor.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        return _serve(Link.from_fd(control_fd), logs)
    except LinkClosed:
        return control.EXIT_FAILURE


def _serve(supervisor: Link, logs: LogSettings) -> int:
    body, (arena_fd,) = supervisor.receive()
    settings = BrokerSettings.from_wire(body)
    arena = Mapping(arena_fd)
    os.close(arena_fd)
    catalog = Catalog(arena.nbytes)
    catalog.update(served_models(settings.models))
    for report in work.model_reports(settings.reports):
        if (report.name, report.version) in catalog.models:
            catalog.learn(report)
    try:
        front = _front(settings)
    except ConfigurationError as error:
        return _failed(supervisor, error)
    access = Access(settings.ipc_mode, settings.ipc_gid)
    epoll = select.epoll()
    local_front = LocalFront(
        epoll, settings.region_nbytes, settings.regions_max, has_name=front.gate is None
    )
    try:
        endpoints = front.bind(settings.bind, access)
        local_front.listen(settings.bind, access)
        supervisor.send([control.Kind.LISTENING, endpoints])
        state = BrokerState(
            catalog,
            arena.nbytes,
            settings.queue_nbytes_max,
            settings.in_flight_max,
            settings.awaited,
        )
        loop = BrokerLoop(
            state,
            front,
            local_front,
            epoll,
            arena,
            supervisor,
            settings.max_message_nbytes,
            settings.is_restarted,
        )
        loop.configure_logs(logs)
        try:
            loop.run()
        finally:
            loop.close()
    except ConfigurationError as error:
        return _failed(supervisor, error)
    finally:
        # A client that sees its local socket end takes no answer any more by the other way.
        local_front.finish()
        front.close()
        local_front.close()
        epoll.close()
    return control.EXIT_OK


def _front(settings: BrokerSettings) -> Front:
    path = settings.curve_secret_key_file
    keys = read_key_pair(path) if path else None
    return Front(settings.max_message_nbytes, keys, settings.curve_clients)


def _failed(supervisor: Link, error: ConfigurationError) -> int:
    supervisor.send([control.Kind.FAILED, control.EXIT_CONFIGURATION, str(error)])
    return control.EXIT_CONFIGURATION


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
