"""One batch in a worker: views of shared memory in, the model, outputs into shared memory."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Mapping, Sequence

import numpy as np

from batchyard.pool.answers import Answers
from batchyard.pool.intake import Assignment, Intake
from batchyard.pool.outputs import place
from batchyard.pool.runtimes.base import Array, LoadedModel
from batchyard.wire import dtypes, log, work
from batchyard.wire.errors import BY_NUMBER, BatchyardError, Internal, ResourceExhausted
from batchyard.wire.tensors import decode_strings

Models = Mapping[tuple[str, int], LoadedModel]
# How often models are asked to let go of inputs while nothing runs: soon, then seldom.
_FIRST_PAUSE_S = 0.01
_LAST_PAUSE_S = 1.0
# How long a batch may hold on to inputs in a client's region before the client is answered.
_REGION_PATIENCE_S = 0.1


def serve(intake: Intake, answers: Answers, models: Models, running: threading.Semaphore) -> None:
    """Runs batches as they come; returns by Ended. Several threads may do so at once.

    ``running`` bounds how many models run at once: a thread more gathers the next batch meanwhile.
    """
    kept_inputs: list[weakref.ref[Array]] = []
    while True:
        assignment, kept_inputs = _next(intake, kept_inputs, models)
        execute = assignment.execute
        answer, fds, inputs = _run(assignment, answers, models, running)
        in_region = bool(assignment.regions)
        del assignment
        kept = _kept(inputs, models, _REGION_PATIENCE_S if in_region else 0.0)
        # Whether somebody still reads the block: a variable that took the tensor's memory, a
        # callable that stored its argument. The broker must not give it away yet.
        answer.kept = bool(kept)
        answers.answer(answer, fds)
        if isinstance(answer, work.Failed):
            _tell_of(execute, answer)
        if kept:
            # Only now: RELEASED must not overtake DONE.
            kept_inputs += _tell_when_released(answers, execute.batch_id, kept)
            del kept


def _tell_of(execute: work.Execute, failed: work.Failed) -> None:
    """A batch that raised: the broker sees to its requests, but here is what they met."""
    ids = execute.request_ids
    log.limited(
        "warning",
        "batch_failed",
        model=execute.model,
        version=execute.version,
        signature=execute.signature,
        batch=execute.batch_id,
        rows=execute.rows,
        code=BY_NUMBER[failed.number].code,
        **({"request_id": ",".join(ids)} if ids else {}),
        reason=failed.message,
    )


def _kept(inputs: Sequence[weakref.ref[Array]], models: Models, patience_s: float) -> list[Array]:
    """The inputs' memory that something still reads, after models were asked to let go."""
    if not any(reference() is not None for reference in inputs):
        return []
    # It may only be a cycle that the garbage collector has not come to, or what waits for the
    # next call: while the arena is full, nothing else would see to it.
    until = time.monotonic() + patience_s
    while True:
        _let_go(models)
        gc.collect()
        kept = [array for reference in inputs if (array := reference()) is not None]
        if not kept or time.monotonic() >= until:
            return kept
        del kept
        # Whoever holds it does so on another thread.
        time.sleep(_FIRST_PAUSE_S)


def _tell_when_released(
    answers: Answers, batch_id: int, kept: Sequence[Array]
) -> list[weakref.ref[Array]]:
    left = len(kept)

    def released() -> None:
        nonlocal left
        left -= 1
        if not left:
            answers.released(batch_id)

    for array in kept:
        weakref.finalize(array, released).atexit = False
    return [weakref.ref(array) for array in kept]


def _next(
    intake: Intake, kept_inputs: list[weakref.ref[Array]], models: Models
) -> tuple[Assignment, list[weakref.ref[Array]]]:
    """Waits for a batch; meanwhile has models let go of inputs. And those that are kept still."""
    pause_s = _FIRST_PAUSE_S
    while kept_inputs := [inputs for inputs in kept_inputs if inputs() is not None]:
        assignment = intake.poll(pause_s)
        if assignment is not None:
            return assignment, kept_inputs
        _let_go(models)
        pause_s = min(2 * pause_s, _LAST_PAUSE_S)
    return intake.next(), kept_inputs


def _let_go(models: Models) -> None:
    # A copy: a version may be unloaded meanwhile.
    for model in tuple(models.values()):
        model.let_go()


def _run(
    assignment: Assignment, answers: Answers, models: Models, running: threading.Semaphore
) -> tuple[work.Done | work.Failed, list[int], list[weakref.ref[Array]]]:
    """The answer, descriptors to send beside it, and references that die with the inputs."""
    execute = assignment.execute
    # All views of the inputs are views of these arrays: when nothing holds them, they are gone.
    references = [weakref.ref(m) for m in (assignment.arena, *assignment.regions.values())]
    batch_id = execute.batch_id
    try:
        began = time.perf_counter()
        _gather(assignment)
        gather_s = time.perf_counter() - began
        inputs = {
            name: _view(assignment.memory(memory), dtype, shape, offset, nbytes)
            for name, dtype, shape, memory, offset, nbytes in execute.inputs
        }
        for name, _, _, memory, _, _ in execute.inputs:
            if memory != work.ARENA:
                # It is the client's own array.
                inputs[name].flags.writeable = False
        with running:
            started = time.perf_counter()
            model = models[execute.model, execute.version]
            outputs = model.run(execute.signature, inputs)
            execution_s = time.perf_counter() - started
            if execute.replies:
                answers.replying(execute)
            # Before another batch runs: a callable may use the arrays that it returned again.
            placed, fds, replied = place(outputs, assignment)
        done = work.Done(batch_id, placed, bool(fds), replied, False, execution_s, gather_s)
        return done, fds, references
    except BatchyardError as error:
        return work.Failed(batch_id, error.number, error.message, False), [], references
    except MemoryError as error:
        message = f"model {execute.model!r}: the worker has no memory left {error}".rstrip()
        return work.Failed(batch_id, ResourceExhausted.number, message, False), [], references
    except BaseException as error:
        # SystemExit too: whatever a model raises is the answer to its batch.
        message = f"model {execute.model!r}: {type(error).__name__}: {error}"
        return work.Failed(batch_id, Internal.number, message, False), [], references


def _gather(assignment: Assignment) -> None:
    """Copies rows from clients' regions into the block, side by side."""
    execute = assignment.execute
    needed = {copy[0] for copy in execute.copies} | {reply[0] for reply in execute.replies}
    needed.update(place[3] for place in execute.inputs)
    if len(needed - {work.ARENA}) > len(assignment.regions):
        raise ResourceExhausted("the worker could not map a client's shared memory")
    for region, offset, target, nbytes in execute.copies:
        # Not by memoryview: numpy lets other threads run meanwhile.
        np.copyto(
            assignment.arena[target : target + nbytes],
            assignment.regions[region][offset : offset + nbytes],
        )


def _view(base: Array, dtype: str, shape: Sequence[int], offset: int, nbytes: int) -> Array:
    if dtype == dtypes.STRING:
        count = int(np.prod(shape, dtype=np.int64))
        return decode_strings(base[offset : offset + nbytes].data, count).reshape(shape)
    return np.ndarray(tuple(shape), dtypes.to_numpy(dtype), base, offset)
