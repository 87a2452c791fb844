"""The one tree of errors: gRPC's codes and names, who erred, and whether trying again helps.

Source of codes and meanings: https://grpc.io/docs/guides/status-codes/
"""

from __future__ import annotations

from typing import ClassVar

# Characters of a message that travel.
MESSAGE_MAX = 4000
# How a message ends that says Unavailable because no worker has loaded the model yet.
STILL_LOADING = "is still loading"


class BatchyardError(Exception):
    """An answer that is not outputs.

    ``code`` is the code's name, ``number`` its number on the wire, ``message`` says what was
    wrong and what would be right. ``fault`` is who erred (``"caller"`` or ``"server"``);
    ``retryable`` says whether the same request may succeed when it is sent again.
    """

    code: ClassVar[str] = "UNKNOWN"
    number: ClassVar[int] = 2
    fault: ClassVar[str] = "server"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
        # What the caller named the request.
        self.request_id: str | None = None

    def __str__(self) -> str:
        of = "" if self.request_id is None else f" (request {self.request_id})"
        return f"{self.code}: {self.message}{of}"


class Unknown(BatchyardError):
    """An error whose code this side does not know."""


class Cancelled(BatchyardError):
    """The caller gave the request up."""

    code = "CANCELLED"
    number = 1
    fault = "caller"


class InvalidArgument(BatchyardError):
    """The request itself is wrong, whatever the state of the server."""

    code = "INVALID_ARGUMENT"
    number = 3
    fault = "caller"


class DeadlineExceeded(BatchyardError):
    """The answer would come, or has come, after the request's deadline."""

    code = "DEADLINE_EXCEEDED"
    number = 4


class NotFound(BatchyardError):
    """No such model, version or signature. A label that no version has is InvalidArgument."""

    code = "NOT_FOUND"
    number = 5
    fault = "caller"


class PermissionDenied(BatchyardError):
    """Nobody may do that here, whoever asks: the configuration says so."""

    code = "PERMISSION_DENIED"
    number = 7
    fault = "caller"


class ResourceExhausted(BatchyardError):
    """A bound of memory or size would be passed."""

    code = "RESOURCE_EXHAUSTED"
    number = 8


class FailedPrecondition(BatchyardError):
    """The server's state does not allow it, and waiting will not change that."""

    code = "FAILED_PRECONDITION"
    number = 9
    fault = "caller"


class Aborted(BatchyardError):
    """The model gave up the operation, as on a conflict."""

    code = "ABORTED"
    number = 10
    retryable = True


class OutOfRange(BatchyardError):
    """A value lies outside what the model takes."""

    code = "OUT_OF_RANGE"
    number = 11
    fault = "caller"


class Unimplemented(BatchyardError):
    """This server does not do that."""

    code = "UNIMPLEMENTED"
    number = 12
    fault = "caller"


class Internal(BatchyardError):
    """The model or the server failed."""

    code = "INTERNAL"
    number = 13


class Unavailable(BatchyardError):
    """The server cannot take the request now; another endpoint, or later, may."""

    code = "UNAVAILABLE"
    number = 14
    retryable = True


class Unauthenticated(BatchyardError):
    """The server does not know who asks."""

    code = "UNAUTHENTICATED"
    number = 16
    fault = "caller"


_CLASSES: tuple[type[BatchyardError], ...] = (
    Cancelled,
    Unknown,
    InvalidArgument,
    DeadlineExceeded,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    FailedPrecondition,
    Aborted,
    OutOfRange,
    Unimplemented,
    Internal,
    Unavailable,
    Unauthenticated,
)
BY_NUMBER: dict[int, type[BatchyardError]] = {cls.number: cls for cls in _CLASSES}
NUMBERS: dict[str, int] = {cls.code: cls.number for cls in _CLASSES}


def from_wire(number: int, message: str) -> BatchyardError:
    """The error for a code that came over the wire; ``Unknown`` for a number not in the tree."""
    return BY_NUMBER.get(number, Unknown)(message)


def shortened(message: str) -> str:
    """A message that is no longer than people read. Models quote whole tensors."""
    if len(message) <= MESSAGE_MAX:
        return message
    return f"{message[:MESSAGE_MAX]} … ({len(message) - MESSAGE_MAX} characters more)"


class ConfigurationError(Exception):
    """A command line or configuration that cannot work; says what would. Exit code 2."""


class DeviceAbsent(ConfigurationError):
    """A device that is named is not there, but may come, as its driver does. Exit code 3."""
