"""Statuses are those of TensorFlow Serving's http_server.cc."""

from __future__ import annotations

from batchyard.clients.gateways.rest.statuses import status_of
from batchyard.wire import errors

EXPECTED = {
    errors.Cancelled: 499,
    errors.Unknown: 500,
    errors.InvalidArgument: 400,
    errors.DeadlineExceeded: 504,
    errors.NotFound: 404,
    errors.PermissionDenied: 403,
    errors.ResourceExhausted: 429,
    errors.FailedPrecondition: 400,
    errors.Aborted: 409,
    errors.OutOfRange: 400,
    errors.Unimplemented: 501,
    errors.Internal: 500,
    errors.Unavailable: 503,
    errors.Unauthenticated: 401,
}


def test_every_error_has_its_status() -> None:
    assert set(EXPECTED) == set(errors.BY_NUMBER.values())
    assert {kind: status_of(kind("x")) for kind in EXPECTED} == EXPECTED
