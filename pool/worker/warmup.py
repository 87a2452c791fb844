"""Runs each signature at every batch size that will occur, before a worker is ready.

The first run of a size is slow (kernels are chosen, memory is taken), and what comes back tells
what the configuration and the model do not: how many bytes outputs take, and whether they
really are row by row. The next runs tell how long a batch takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from batchyard.pool.runtimes.base import Array, LoadedModel
from batchyard.pool.worker.trial_runs import TrialRun, trial_run_of
from batchyard.wire import dtypes, log
from batchyard.wire.errors import InvalidArgument, OutOfRange
from batchyard.wire.signatures import SignatureSpec, TensorSpec
from batchyard.wire.tensors import OFFSET_NBYTES
from batchyard.wire.work import SignatureReport

# Of each size: so many runs are timed, unless they take longer together.
_TIMED_RUNS = 3
_TIMED_S = 0.3


def warm_up(
    name: str,
    model: LoadedModel,
    batch_sizes: Sequence[int],
    tell: Callable[[float, int], None] = lambda share, rows: None,
    run: TrialRun | None = None,
) -> list[SignatureReport]:
    """What was seen of each signature. A model with state is left as it is.

    ``tell`` hears before each batch size which share of all is done, and of how many rows it is.
    ``run`` is how the model is run, if not in host memory.

    A signature that does not take made-up inputs (zeros, empty strings, open dimensions of 1)
    is not warmed up: the log says so, and the worker becomes ready all the same.
    """
    run = run or trial_run_of(model, None)
    reports = []
    for i, spec in enumerate(model.signatures):

        def tell_of_signature(share: float, rows: int, i: int = i) -> None:
            tell((i + share) / len(model.signatures), rows)

        if model.stateful or spec.open:
            reports.append(SignatureReport(spec, None))
            continue
        try:
            reports.append(_warm_up_signature(name, run, spec, batch_sizes, tell_of_signature))
        except (InvalidArgument, OutOfRange) as error:
            # It does not take what is made up here: real requests may do better.
            log.info("warmup_skipped", model=name, signature=spec.name, reason=error)
            reports.append(SignatureReport(spec, None))
        except Exception as error:
            log.warning("warmup_failed", model=name, signature=spec.name, reason=error)
            reports.append(SignatureReport(spec, None))
    return reports


def _warm_up_signature(
    name: str,
    run: TrialRun,
    spec: SignatureSpec,
    batch_sizes: Sequence[int],
    tell: Callable[[float, int], None],
) -> SignatureReport:
    row_nbytes = 0
    by_rows = True
    runs: list[tuple[int, float]] = []
    sizes = batch_sizes if spec.batched else [1]
    for i, rows in enumerate(sizes):
        tell(i / len(sizes), rows)
        inputs = {i.name: made_up(i, rows, spec.batched) for i in spec.inputs}
        outputs = run(spec.name, inputs).outputs
        row_nbytes = max(row_nbytes, -(-sum(map(output_nbytes, outputs)) // rows))
        by_rows = by_rows and all(o.ndim > 0 and o.shape[0] == rows for o in outputs)
        runs += [(rows, seconds) for seconds in _timed(run, spec, inputs)]
    if spec.batched and not by_rows:
        log.warning(
            "not_batched",
            model=name,
            signature=spec.name,
            reason="its outputs have not as many rows as inputs",
        )
        spec = replace(spec, batched=False)
    return SignatureReport(spec, row_nbytes, tuple(runs))


def _timed(run: TrialRun, spec: SignatureSpec, inputs: dict[str, Array]) -> list[float]:
    """How long a few more runs take."""
    seconds: list[float] = []
    while len(seconds) < _TIMED_RUNS and sum(seconds) < _TIMED_S:
        seconds.append(run(spec.name, inputs).seconds)
    return seconds


def made_up(spec: TensorSpec, rows: int, batched: bool) -> Array:
    """An input of zeros or empty strings, of so many rows where ``batched``."""
    declared = (None,) if spec.shape is None else spec.shape
    shape = [1 if dim is None else dim for dim in declared]
    if batched:
        shape[0] = rows
    if spec.dtype == dtypes.STRING:
        return np.full(shape, b"", object)
    return np.zeros(shape, dtypes.to_numpy(spec.dtype))


def output_nbytes(output: Array) -> int:
    """What an output takes in a block, in bytes."""
    if output.dtype.kind in "OSU":
        return sum(len(item) + OFFSET_NBYTES for item in output.ravel().tolist()) + OFFSET_NBYTES
    return output.nbytes
