"""What gateways ask to be served, one request after the other. Pure.

A request has the server serve other models with the rest of its configuration as it is. Its answer
comes when all of them are served, or one was given up; what is read of the configuration later,
at SIGHUP or because it changed, replaces them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from batchyard.pool.events import Action, AnswerReload, Cause, ReadModels, ResumePolls
from batchyard.pool.offer import Offer
from batchyard.wire.errors import (
    Aborted,
    BatchyardError,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)

# Beyond, whoever asks is told so.
_WAITING_MAX = 16
_STOPPING = "the server is stopping"
# What a caller may say of a model: how it is run, and by what, is the configuration's affair.
_KEYS = {"name", "path", "version_policy", "version_labels"}


class Reloads:
    """The requests of a server's gateways. What is to be done goes to ``do``."""

    def __init__(self, do: Callable[[Action], None]) -> None:
        self._do = do
        # The ticket and the models of each that was not begun.
        self._waiting: deque[tuple[int, list[dict[str, Any]]]] = deque()
        self._current: int | None = None
        # Its configuration is the one that holds.
        self._is_read = False

    def asked(self, ticket: int, models: list[dict[str, Any]], *, is_stopping: bool) -> None:
        """A gateway asked."""
        keys = {key for model in models for key in model}
        if not keys <= _KEYS:
            message = f"a model may have {_names(_KEYS)} here, not {_names(keys - _KEYS)}"
            self._answer(ticket, InvalidArgument(message))
        elif is_stopping:
            self._answer(ticket, Unavailable(_STOPPING))
        elif len(self._waiting) >= _WAITING_MAX:
            message = f"{_WAITING_MAX} reloads wait already: ask again when they are done"
            self._answer(ticket, ResourceExhausted(message))
        else:
            self._waiting.append((ticket, models))

    def begin(self) -> None:
        """The server serves: the next is begun, if none is under way."""
        if self._current is None and self._waiting:
            self._current, models = self._waiting.popleft()
            self._do(ReadModels(models))

    def read(self, cause: Cause) -> None:
        """A configuration was read and holds from now on."""
        if cause is Cause.GATEWAY:
            self._is_read = True
        elif self._is_read:
            message = "the server's own configuration was read meanwhile, and holds now"
            self._end(Aborted(message))

    def refused(self, cause: Cause, message: str) -> None:
        """A configuration was read, and cannot work."""
        if cause is Cause.GATEWAY:
            self._end(InvalidArgument(message))

    def look(self, offer: Offer) -> None:
        """Answers the one under way once what it asked for is served or given up."""
        if not self._is_read or not offer.is_settled:
            return
        failed = [
            f"model {name!r} version {version}: {settings.error}"
            for (name, version), settings in sorted(offer.target.refused.items())
        ]
        problems = [*failed, *offer.target.complaints]
        self._end(FailedPrecondition("\n".join(problems)) if problems else None)

    def stop(self) -> None:
        """The server ends."""
        if self._current is not None:
            self._end(Unavailable(_STOPPING))
        while self._waiting:
            self._answer(self._waiting.popleft()[0], Unavailable(_STOPPING))

    def _end(self, error: BatchyardError | None) -> None:
        ticket, self._current, self._is_read = self._current, None, False
        if ticket is not None:
            self._do(ResumePolls())
            self._answer(ticket, error)

    def _answer(self, ticket: int, error: BatchyardError | None) -> None:
        self._do(AnswerReload(ticket, error))


def _names(keys: set[str]) -> str:
    return ", ".join(sorted(keys))
