"""A process that tests ask: it may import what theirs must stay without.

A script defines the functions that may be asked, and ends with ``answer_questions(globals())``. It
reads pickled questions from standard input and writes pickled answers.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_ANSWER_S = 60.0
_TESTS = Path(__file__).parent.parent


@contextlib.contextmanager
def asked_process(script: str) -> Iterator[Callable[..., Any]]:
    """A function that has another one, of the script, run in a process of its own."""
    path = os.pathsep.join(filter(None, [str(_TESTS), os.environ.get("PYTHONPATH")]))
    # Not multiprocessing, whose semaphores lie in /dev/shm as long as the process runs.
    process = subprocess.Popen(
        [sys.executable, "-P", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    )
    questions, answers = process.stdin, process.stdout
    assert questions is not None
    assert answers is not None

    def ask(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        pickle.dump((function.__name__, args, kwargs), questions)
        questions.flush()
        assert select.select([answers], [], [], _ANSWER_S)[0], "the asked process does not answer"
        answer, error = pickle.load(answers)
        if error is not None:
            raise error
        result: T = answer
        return result

    with process:
        try:
            yield ask
        finally:
            questions.close()


def answer_questions(functions: Mapping[str, Any]) -> None:
    """Runs what is asked until standard input is closed."""
    # Whatever prints must not print between the answers.
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)
        while True:
            try:
                name, args, kwargs = pickle.load(sys.stdin.buffer)
            except EOFError:
                return
            try:
                answer: tuple[Any, Exception | None] = functions[name](*args, **kwargs), None
            except Exception as error:
                answer = None, error
            pickle.dump(answer, answers)
            answers.flush()
