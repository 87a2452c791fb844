"""The worker process: ``python -m batchyard.pool.worker CONTROL_FD PARENT_PID``.

Bound to its device before anything imports TensorFlow: the supervisor has set the environment,
and this package imports runtimes only when it loads models. On a GPU the arena is page-locked
before that.

It outlives brokers: when one is started anew, the supervisor hands over a link to it. It ends
with its supervisor, or when that one closes the control link.
"""

from __future__ import annotations

import contextlib
import os
import sys

from batchyard.pool.worker.intake import Ended
from batchyard.pool.worker.loading import CannotServe
from batchyard.pool.worker.process import Worker
from batchyard.wire import control, log
from batchyard.wire.arena import Mapping
from batchyard.wire.control import WorkerSettings
from batchyard.wire.link import Link, LinkClosed


def main(control_fd: int, parent_pid: int) -> int:
    """Runs batches until the supervisor closes its link; the exit code."""
    control.die_with_parent(parent_pid)
    control.leave_signals_to_parent()
    log.configure("worker")
    supervisor = Link.from_fd(control_fd)
    body, (link_fd, arena_fd) = supervisor.receive()
    settings = WorkerSettings.from_wire(body)
    log.configure(f"worker-{settings.worker_id}")
    arena = Mapping(arena_fd)
    os.close(arena_fd)
    if settings.cpu_affinity is not None:
        os.sched_setaffinity(0, settings.cpu_affinity)

    def tell_failure(reason: str) -> None:
        with contextlib.suppress(LinkClosed):
            supervisor.send([control.Kind.FAILED, control.EXIT_FAILURE, reason, None])

    worker = Worker(settings, Link.from_fd(link_fd), arena, tell_failure)
    # Before models load, which may take minutes: a broker may die then too.
    worker.start(lambda: worker.obey(supervisor))
    try:
        worker.load(lambda share, what: _tell(supervisor, share, what))
    except CannotServe as error:
        with contextlib.suppress(LinkClosed):
            supervisor.send([control.Kind.FAILED, error.exit_code, str(error), error.model])
        return error.exit_code
    with contextlib.suppress(Ended):
        worker.serve()
    worker.join()
    return control.EXIT_OK


def _tell(supervisor: Link, share: float, what: str) -> None:
    with contextlib.suppress(LinkClosed):
        supervisor.send([control.Kind.LOADING, share, what])


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
