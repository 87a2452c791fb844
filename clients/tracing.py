"""What a caller names its calls, and whether calls are traced.

Spans are made by ``clients.spans``, with OpenTelemetry; it is imported only where that is installed
and somebody has configured it: the application, or ``OTEL_*`` variables in the environment.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from batchyard.wire.tags import check_request_id

if TYPE_CHECKING:
    from batchyard.clients.spans import CallSpan, Tracing

_EXPORTERS = "OTEL_TRACES_EXPORTER"
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


class Label:
    """The id that a caller gave a call, and its span, if it has one."""

    __slots__ = ("request_id", "span")

    def __init__(self, request_id: str | None, span: CallSpan | None) -> None:
        self.request_id = request_id
        self.span = span

    def end(self, error: BaseException | None = None) -> None:
        """The call has its outputs, or an error."""
        if self.span is not None:
            self.span.end(error)

    def end_with(self, future: Future[Any]) -> None:
        """The same, of a call whose future is done."""
        self.end(None if future.cancelled() else future.exception())


def make_label(
    tracing: Tracing | None, model: str, signature: str, method: str, request_id: str | None
) -> Label:
    """For a call that begins now. Raises InvalidArgument for what cannot be an id."""
    if request_id is not None:
        check_request_id(request_id)
    span = None if tracing is None else tracing.begin(model, signature, method, request_id)
    return Label(request_id, span)


def find_tracing() -> Tracing | None:
    """How to trace calls; None when nobody has asked for it, or OpenTelemetry is not installed."""
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    is_asked_for = _is_asked_for()
    # An application that has configured it has imported its SDK.
    if not is_asked_for and "opentelemetry.sdk.trace" not in sys.modules:
        return None
    try:
        from batchyard.clients import spans
    except ImportError:
        return None
    return spans.find(is_asked_for)


def _is_asked_for() -> bool:
    """Whether the environment says where spans go."""
    exporters = os.environ.get(_EXPORTERS, "").strip()
    if exporters:
        return any(name.strip() not in ("", "none") for name in exporters.split(","))
    return any(os.environ.get(name) for name in _ENDPOINTS)
