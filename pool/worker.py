"""The worker process: ``python -m batchyard.pool.worker CONTROL_FD PARENT_PID``.

Bound to its device before anything imports TensorFlow: the supervisor has set the environment,
and this module imports runtimes only when it loads models.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
import traceback
from typing import Any

from batchyard.pool.execution import serve
from batchyard.pool.intake import Intake
from batchyard.pool.runtimes.base import LoadedModel, ModelLoadError
from batchyard.pool.warmup import warm_up
from batchyard.wire import control, log
from batchyard.wire.arena import Mapping
from batchyard.wire.control import ModelSource, WorkerSettings
from batchyard.wire.link import Link, LinkClosed
from batchyard.wire.work import ModelReport, Ready


def main(control_fd: int, parent_pid: int) -> int:
    """Runs batches until the broker closes the link; the exit code."""
    control.die_with_parent(parent_pid)
    control.leave_signals_to_parent()
    supervisor = Link.from_fd(control_fd)
    body, (link_fd, arena_fd) = supervisor.receive()
    settings = WorkerSettings.from_wire(body)
    log.configure(f"worker-{settings.worker_id}")
    link = Link.from_fd(link_fd)
    arena = Mapping(arena_fd)
    os.close(arena_fd)
    if settings.cpu_affinity is not None:
        os.sched_setaffinity(0, settings.cpu_affinity)
    models: dict[tuple[str, int], LoadedModel] = {}
    reports = []
    try:
        for source in settings.models:
            model, report = _load(source, settings)
            models[source.name, source.version] = model
            reports.append(report)
    except _CannotServe as error:
        supervisor.send([control.Kind.FAILED, error.exit_code, str(error)])
        return error.exit_code
    try:
        # What models are made of stays: the collector need not look at it with every batch.
        gc.collect()
        gc.freeze()
        link.send(Ready(settings.device, tuple(reports)).to_wire())
        _serve_on_threads(settings.concurrent_batches, link, arena.memory, models)
    except LinkClosed:
        return control.EXIT_OK
    return control.EXIT_OK


class _CannotServe(Exception):
    def __init__(self, exit_code: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def _load(source: ModelSource, settings: WorkerSettings) -> tuple[LoadedModel, ModelReport]:
    started = time.perf_counter()
    try:
        model = _open(source, settings)
    except ModelLoadError as error:
        message = f"model {source.name!r} does not load: {error}"
        raise _CannotServe(control.EXIT_MODEL, message) from error
    loaded = time.perf_counter()
    signatures = warm_up(source.name, model, source.batch_sizes)
    warmed = time.perf_counter()
    report = ModelReport(
        name=source.name,
        version=source.version,
        stateful=model.stateful,
        bears_changing_inputs=model.bears_changing_inputs,
        signatures=tuple(signatures),
        load_s=loaded - started,
        warmup_s=warmed - loaded,
    )
    log.info(
        "model_loaded",
        model=source.name,
        version=source.version,
        device=settings.device,
        load_s=report.load_s,
        warmup_s=report.warmup_s,
    )
    return model, report


def _open(source: ModelSource, settings: WorkerSettings) -> LoadedModel:
    if source.runtime == "python":
        from batchyard.pool.runtimes.python import PythonModel

        return PythonModel(source.name, source.path, source.signature, source.read_in_place)
    try:
        from batchyard.pool.runtimes import savedmodel
    except ImportError as error:
        message = (
            f"TensorFlow cannot be imported ({error}): pip install 'batchyard[cpu]' or "
            "'batchyard[gpu]'"
        )
        raise _CannotServe(control.EXIT_DEVICE, message) from error
    try:
        savedmodel.check_device(settings)
    except savedmodel.DeviceError as error:
        raise _CannotServe(control.EXIT_DEVICE, str(error)) from error
    return savedmodel.SavedModel(source.name, source.path, settings)


def _serve_on_threads(count: int, link: Link, memory: memoryview, models: Any) -> None:
    """Serves on this thread and on ``count - 1`` more; returns by LinkClosed, as ``serve``.

    Once a client has a region, on one more: it copies the next batch's rows out of regions while
    models run, which never are more than ``count``. But not with a model that minds on which
    thread it runs.
    """
    running = threading.Semaphore(count)

    def serve_or_end() -> None:
        try:
            serve(link, intake, models, running)
        except LinkClosed:
            return
        except BaseException:
            # A worker that serves on fewer threads than the broker counts on would lose batches.
            traceback.print_exc()
            os._exit(control.EXIT_FAILURE)

    def start() -> None:
        threading.Thread(target=serve_or_end, daemon=True).start()

    ahead = all(model.any_thread for model in models.values())
    intake = Intake(link, memory, on_region=start if ahead else lambda: None)
    for _ in range(count - 1):
        start()
    serve(link, intake, models, running)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
