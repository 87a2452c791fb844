"""A part of a measurement in a process of its own, asked over a pipe.

The child's module ends with ``answer({"command": function, …})``. The other side::

    with Child("batchyard.benchmarks.tensorflow_reference") as reference:
        reference.ask("load", name="mean", path=path)

A question is a line of JSON, ``[command, arguments]``; so is the answer. The child starts once
and measures when it is asked, so that what it measures can be interleaved with other things.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import Any, Self

from batchyard.benchmarks.failures import BenchmarkFailed

# Importing TensorFlow on a busy machine takes its time; what is asked says how long it measures.
_ANSWER_TIMEOUT_S = 180.0
_STOP_TIMEOUT_S = 5.0
_STDERR_TAIL = 4000


class ChildFailed(BenchmarkFailed):
    """The process ended, or did not answer; the message has what it said."""


class Child:
    """``python -m MODULE ARGUMENTS``; ends with the block, or with the process that made it."""

    def __init__(self, module: str, *arguments: str) -> None:
        self._module = module
        self._arguments = arguments

    def __enter__(self) -> Self:
        self._stderr = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", self._module, *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            # Ctrl-C is for the harness, which ends its children.
            start_new_session=True,
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            # What it still measures, nobody waits for.
            self._process.wait(_STOP_TIMEOUT_S if kind is None else 0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._stderr.close()

    def ask(self, command: str, **arguments: Any) -> Any:
        """The answer to a command. Raises ChildFailed."""
        self.tell(command, **arguments)
        return self.hear()

    def tell(self, command: str, **arguments: Any) -> None:
        """Asks without waiting, so that several children work at once; ``hear`` next."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([command, arguments]) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failed("ended") from None

    def hear(self, timeout_s: float = _ANSWER_TIMEOUT_S) -> Any:
        """The answer to the oldest question that was told. Raises ChildFailed."""
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], timeout_s)[0]:
            raise self._failed(f"gave no answer in {timeout_s:g} s")
        line = self._process.stdout.readline()
        if not line:
            raise self._failed("ended")
        return json.loads(line)

    def fileno(self) -> int:
        """For ``select``: readable when there is an answer, or when the process ended."""
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def kill(self) -> None:
        """Ends it at once, whatever it does."""
        self._process.kill()

    def _failed(self, what: str) -> ChildFailed:
        self._process.kill()
        self._process.wait()
        self._stderr.seek(0)
        return ChildFailed(f"{self._module} {what}\n{self._stderr.read()[-_STDERR_TAIL:].strip()}")


def answer(commands: Mapping[str, Callable[..., Any]]) -> None:
    """The child's side: answers what it is asked until its standard input ends."""
    # What a library prints must not be taken for an answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        command, arguments = json.loads(line)
        print(json.dumps(commands[command](**arguments)), file=answers, flush=True)
