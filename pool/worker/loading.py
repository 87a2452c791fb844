"""Loads a worker's models and warms them up."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from batchyard.pool.runtimes.base import DeviceError, LoadedModel, ModelLoadError
from batchyard.pool.worker.trial_runs import TrialRun, trial_run_of
from batchyard.pool.worker.warmup import warm_up
from batchyard.pool.worker.worker_card import NO_CARD, WorkerCard
from batchyard.wire import control, log
from batchyard.wire.control import ModelSource, WorkerSettings
from batchyard.wire.errors import BatchyardError
from batchyard.wire.work import ModelReport, SignatureReport

# Of the time that a model takes: before its own warm-up requests run.
_REQUESTS_SHARE = 0.95


class CannotServe(Exception):
    """The worker ends with ``exit_code``. ``model`` is what does not load: its name and version."""

    def __init__(self, exit_code: int, message: str, model: tuple[str, int] | None = None) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.model = model


def load(
    source: ModelSource,
    settings: WorkerSettings,
    tell: Callable[[float, str], None],
    card: WorkerCard = NO_CARD,
) -> tuple[LoadedModel, ModelReport]:
    """The model, warmed up, and what the broker is told of it. Raises CannotServe.

    ``tell`` hears which share of it is done, and what comes next in words.
    """
    tell(0.0, f"loading {source.name}")
    started = time.perf_counter()
    try:
        _check_card(source, settings, card)
        model = _open(source, settings)
    except ModelLoadError as error:
        raise _does_not_load(source, error) from error
    loaded = time.perf_counter()

    def tell_of_warmup(share: float, rows: int) -> None:
        # Each is about half of it.
        tell(0.5 + share / 2, f"warming up at {rows} row{'s' * (rows > 1)}: {source.name}")

    run = trial_run_of(model, card.card)
    signatures = warm_up(source.name, model, source.batch_sizes, tell_of_warmup, run)
    signatures = _run_requests(source, model, signatures, tell, run)
    warmed = time.perf_counter()
    if card.is_lost:
        raise _does_not_load(source, "it broke the card's context when it was warmed up")
    report = ModelReport(
        name=source.name,
        version=source.version,
        stateful=model.stateful,
        bears_changing_inputs=card.reads_in_place(model),
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
        compiled=source.jit_compile,
    )
    return model, report


def _run_requests(
    source: ModelSource,
    model: LoadedModel,
    signatures: list[SignatureReport],
    tell: Callable[[float, str], None],
    run: TrialRun,
) -> list[SignatureReport]:
    """Runs the warm-up requests in the SavedModel's folder, if there are any.

    The reports, with what was seen of signatures that did not take made-up inputs.
    """
    if source.warmup_requests is None:
        return signatures
    from batchyard.pool.runtimes.warmup_records import read_records, warmup_file

    path = warmup_file(source.path)
    if path is None:
        return signatures
    # What they are written in takes a while to import, and most models have none.
    from batchyard.pool.worker.warmup_requests import run_requests

    started = time.perf_counter()

    def tell_of_request(number: int) -> None:
        tell(_REQUESTS_SHARE, f"running warm-up request {number}: {source.name}")

    try:
        ran = run_requests(model, read_records(path), source.warmup_requests, tell_of_request, run)
    except (BatchyardError, ModelLoadError) as error:
        reason = f"{path}: {error.message}" if isinstance(error, BatchyardError) else str(error)
        raise _does_not_load(source, reason) from error
    log.info(
        "warmup_requests_run",
        model=source.name,
        version=source.version,
        records=ran.records,
        seconds=time.perf_counter() - started,
    )
    return [
        report
        if report.output_row_nbytes is not None
        else replace(report, output_row_nbytes=ran.output_row_nbytes.get(report.spec.name))
        for report in signatures
    ]


def _does_not_load(source: ModelSource, reason: object) -> CannotServe:
    message = f"model {source.name!r} does not load: {reason}"
    return CannotServe(control.EXIT_MODEL, message, (source.name, source.version))


def _check_card(source: ModelSource, settings: WorkerSettings, card: WorkerCard) -> None:
    if source.device_arrays and settings.device != "cpu" and card.card is None:
        raise ModelLoadError(f"device_arrays needs CUDA's driver: {card.why_none}")


def _open(source: ModelSource, settings: WorkerSettings) -> LoadedModel:
    if source.runtime == "python":
        return _open_function(source, settings)
    try:
        from batchyard.pool.runtimes.savedmodel import load_savedmodel
    except ImportError as error:
        message = (
            f"TensorFlow cannot be imported ({error}): pip install 'batchyard[cpu]' or "
            "'batchyard[gpu]'"
        )
        raise CannotServe(control.EXIT_DEVICE, message) from error
    try:
        return load_savedmodel(source, settings)
    except DeviceError as error:
        raise CannotServe(control.EXIT_DEVICE, str(error)) from error


def _open_function(source: ModelSource, settings: WorkerSettings) -> LoadedModel:
    from batchyard.pool.runtimes.memory_caps import cap_memory
    from batchyard.pool.runtimes.out_of_memory import is_out_of_memory, too_large
    from batchyard.pool.runtimes.python import PythonModel

    cap_memory(settings)
    on_card = source.device_arrays and settings.device != "cpu"
    try:
        return PythonModel(
            source.name, source.path, source.signature, source.read_in_place, on_card
        )
    except ModelLoadError as error:
        if error.__cause__ is not None and is_out_of_memory(error.__cause__):
            raise ModelLoadError(f"{error}: {too_large(settings)}") from error
        raise
