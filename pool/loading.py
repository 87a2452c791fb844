"""Loads a worker's models and warms them up."""

from __future__ import annotations

import time
from collections.abc import Callable

from batchyard.pool.runtimes.base import LoadedModel, ModelLoadError
from batchyard.pool.warmup import warm_up
from batchyard.wire import control, log
from batchyard.wire.control import ModelSource, WorkerSettings
from batchyard.wire.work import ModelReport


class CannotServe(Exception):
    """The worker ends with ``exit_code``. ``model`` is what does not load: its name and version."""

    def __init__(self, exit_code: int, message: str, model: tuple[str, int] | None = None) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.model = model


def load(
    source: ModelSource, settings: WorkerSettings, tell: Callable[[float, str], None]
) -> tuple[LoadedModel, ModelReport]:
    """The model, warmed up, and what the broker is told of it. Raises CannotServe.

    ``tell`` hears which share of it is done, and what comes next in words.
    """
    tell(0.0, f"loading {source.name}")
    started = time.perf_counter()
    try:
        model = _open(source, settings)
    except ModelLoadError as error:
        message = f"model {source.name!r} does not load: {error}"
        at_fault = source.name, source.version
        raise CannotServe(control.EXIT_MODEL, message, at_fault) from error
    loaded = time.perf_counter()

    def tell_of_warmup(share: float, rows: int) -> None:
        # Each is about half of it.
        tell(0.5 + share / 2, f"warming up at {rows} row{'s' * (rows > 1)}: {source.name}")

    signatures = warm_up(source.name, model, source.batch_sizes, tell_of_warmup)
    warmed = time.perf_counter()
    report = ModelReport(
        name=source.name,
        version=source.version,
        stateful=model.stateful,
        bears_changing_inputs=model.bears_changing_inputs,
        signatures=tuple(signatures),
        load_s=loaded - started,
        warmup_s=warmed - loaded,
        signature_def=model.signature_def,
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
        raise CannotServe(control.EXIT_DEVICE, message) from error
    try:
        savedmodel.check_device(settings)
    except savedmodel.DeviceError as error:
        raise CannotServe(control.EXIT_DEVICE, str(error)) from error
    return savedmodel.SavedModel(source.name, source.path, settings)
