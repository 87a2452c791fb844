"""Which HTTP status an error is answered with, as in TensorFlow Serving. Pure."""

from __future__ import annotations

from batchyard.wire.errors import BatchyardError

_OF_CODE = {
    "CANCELLED": 499,
    "INVALID_ARGUMENT": 400,
    "DEADLINE_EXCEEDED": 504,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "PERMISSION_DENIED": 403,
    "RESOURCE_EXHAUSTED": 429,
    "FAILED_PRECONDITION": 400,
    "ABORTED": 409,
    "OUT_OF_RANGE": 400,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "UNAUTHENTICATED": 401,
}


def status_of(error: BatchyardError) -> int:
    """The HTTP status of an error's code: 500 where the server failed."""
    return _OF_CODE.get(error.code, 500)
