"""Children that live on when a question fails: what they have loaded serves the next ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from batchyard.benchmarks.child import Child, answer
from batchyard.benchmarks.failures import BenchmarkFailed

_REASON_LENGTH = 600


class GuardedChild(Child):
    """Raises BenchmarkFailed with what a command raised, and ChildFailed when the child ended."""

    def hear(self, *timeout_s: float) -> Any:
        """See ``Child.hear``."""
        found = super().hear(*timeout_s)
        if "error" in found:
            raise BenchmarkFailed(found["error"])
        return found["value"]


def answer_guarded(commands: Mapping[str, Callable[..., Any]]) -> None:
    """The child's side; see ``child.answer``."""
    answer({name: _guarded(command) for name, command in commands.items()})


def _guarded(command: Callable[..., Any]) -> Callable[..., Any]:
    def run(**arguments: Any) -> dict[str, Any]:
        try:
            return {"value": command(**arguments)}
        except Exception as error:
            return {"error": describe(error)}

    return run


def describe(error: BaseException) -> str:
    """The first of a group of errors, in one line."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return " ".join(f"{type(error).__name__}: {error}".split())[:_REASON_LENGTH]
