"""One batch in a worker: views of shared memory in, the model, outputs into shared memory."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable

from batchyard.pool.worker.answers import Answers
from batchyard.pool.worker.batch_inputs import gather, views
from batchyard.pool.worker.card_execution import CardExecution
from batchyard.pool.worker.failed_batches import answer_to, tell_of
from batchyard.pool.worker.intake import Assignment, Intake
from batchyard.pool.worker.kept_inputs import (
    Models,
    References,
    kept_of,
    next_batch,
    tell_when_released,
)
from batchyard.pool.worker.outputs import place
from batchyard.pool.worker.turns import Turns
from batchyard.wire import work


def serve(
    intake: Intake,
    answers: Answers,
    models: Models,
    running: Turns,
    on_card: CardExecution | None = None,
    before_failure: Callable[[work.Failed], None] = lambda failed: None,
) -> None:
    """Runs batches as they come; returns by Ended. Several threads may do so at once.

    ``running`` bounds how many models run at once: a thread more gathers the next batch meanwhile.
    Models with ``device_arrays`` are run by ``on_card``, if there is one. ``before_failure`` is
    called before a batch is answered as failed; it may end the process.
    """
    kept_inputs: References = []
    while True:
        assignment, kept_inputs = next_batch(intake, kept_inputs, models)
        execute = assignment.execute
        if on_card is not None:
            model = models.get((execute.model, execute.version))
            if model is not None and model.device_arrays:
                on_card.start(assignment, model)
                del assignment, model
                continue
        answer, fds, inputs = _run(assignment, answers, models, running)
        in_region = bool(assignment.regions)
        del assignment
        if isinstance(answer, work.Failed):
            before_failure(answer)
        kept = kept_of(inputs, models, in_region)
        # Whether somebody still reads the block: a variable that took the tensor's memory, a
        # callable that stored its argument. The broker must not give it away yet.
        answer.kept = bool(kept)
        answers.answer(answer, fds)
        if isinstance(answer, work.Failed):
            tell_of(execute, answer)
        if kept:
            # Only now: RELEASED must not overtake DONE.
            kept_inputs += tell_when_released(answers, execute.batch_id, kept)
            del kept


def _run(
    assignment: Assignment, answers: Answers, models: Models, running: Turns
) -> tuple[work.Done | work.Failed, list[int], References]:
    """The answer, descriptors to send beside it, and references that die with the inputs."""
    execute = assignment.execute
    # All views of the inputs are views of these arrays: when nothing holds them, they are gone.
    references = [weakref.ref(m) for m in (assignment.arena, *assignment.regions.values())]
    try:
        began = time.perf_counter()
        gather(assignment)
        gather_s = time.perf_counter() - began
        inputs = views(assignment)
        with running:
            started = time.perf_counter()
            model = models[execute.model, execute.version]
            outputs = model.run(execute.signature, inputs)
            execution_s = running.took(started)
            if execute.replies:
                answers.replying(execute)
            # Before another batch runs: a callable may use the arrays that it returned again.
            placed, fds, replied = place(outputs, assignment)
        done = work.Done(execute.batch_id, placed, bool(fds), replied, False, execution_s, gather_s)
        return done, fds, references
    except BaseException as error:
        return answer_to(execute, error), [], references
