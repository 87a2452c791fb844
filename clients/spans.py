"""Spans of calls, by OpenTelemetry: one around each, and in it where the server spent the time.

The server makes no spans: it tells how long things took with the answer, and the client, which has
an exporter anyway, makes spans of that. So nothing is exported beside the broker's one thread, and
clocks of machines need not agree. What the two sides cannot know is how long the request travelled,
and how long the answer did: each is taken for half of what is left.

https://opentelemetry.io/docs/specs/semconv/rpc/rpc-spans/ has the names of attributes.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from importlib.metadata import entry_points

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer

from batchyard.wire.errors import BatchyardError
from batchyard.wire.tags import Timing

# Of the answers of one call, which may have many in ``predict_many``.
_TIMINGS_MAX = 16
_EXPORTERS = "opentelemetry_traces_exporter"
_OTLP = {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}

_own_provider: TracerProvider | None = None
_lock = threading.Lock()


def find(is_asked_for: bool) -> Tracing | None:
    """Tracing by the application's provider; else, if that ``is_asked_for``, by one of our own, as
    the environment says. None when neither is there."""
    provider = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider):
        own = _provider() if is_asked_for else None
        if own is None:
            return None
        provider = own
    return Tracing(provider.get_tracer("batchyard"))


def _provider() -> TracerProvider | None:
    """One for the process. Its thread exports; what it cannot keep up with is dropped."""
    global _own_provider
    with _lock:
        if _own_provider is None:
            exporter = _exporter()
            if exporter is None:
                return None
            _own_provider = TracerProvider()
            _own_provider.add_span_processor(BatchSpanProcessor(exporter))
        return _own_provider


def _exporter() -> SpanExporter | None:
    """The one that the environment names, as its package registers it."""
    name = os.environ.get("OTEL_TRACES_EXPORTER", "").strip() or "otlp"
    if name == "otlp":
        protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get(
            "OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"
        )
        name = _OTLP.get(protocol, protocol)
    try:
        (found,) = entry_points(group=_EXPORTERS, name=name)
        exporter: SpanExporter = found.load()()
    except Exception as error:
        # A program must not fail for want of traces.
        reason = f"no exporter {name!r}: {type(error).__name__}: {error}"
        logging.getLogger("batchyard.clients").warning("calls are not traced: %s", reason)
        return None
    return exporter


class Tracing:
    """Begins spans. Threads may share it."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def begin(
        self, model: str, signature: str, method: str, request_id: str | None
    ) -> CallSpan | None:
        """The span of a call that begins now, in the caller's own; None when it is not sampled."""
        attributes: dict[str, str | int] = {
            "rpc.system": "batchyard",
            "rpc.service": model,
            "rpc.method": method,
            "batchyard.model": model,
            "batchyard.signature": signature,
        }
        if request_id is not None:
            attributes["batchyard.request_id"] = request_id
        span = self._tracer.start_span(
            f"{model}/{method}", kind=SpanKind.CLIENT, attributes=attributes
        )
        return CallSpan(self._tracer, span) if span.is_recording() else None


class CallSpan:
    """The span of one call, which may end on another thread than it began on."""

    def __init__(self, tracer: Tracer, span: trace.Span) -> None:
        self._tracer = tracer
        self._span = span
        self._began_ns = time.time_ns()
        # When each answer came, and where the time went until then.
        self._timings: list[tuple[int, Timing]] = []
        self._has_ended = False
        context = span.get_span_context()
        # As W3C Trace Context has it.
        self.traceparent = (
            f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
        )

    def sent_to(self, endpoint: str) -> None:
        """Which server got it."""
        transport, _, address = endpoint.partition("://")
        if transport == "ipc":
            self._span.set_attributes({"server.address": address, "network.transport": "unix"})
            return
        host, _, port = address.rpartition(":")
        self._span.set_attributes({"server.address": host.strip("[]"), "network.transport": "tcp"})
        if port.isdecimal():
            self._span.set_attribute("server.port", int(port))

    def timed(self, timing: Timing, version: int) -> None:
        """An answer came; perhaps after the caller's deadline."""
        if self._has_ended:
            return
        self._span.set_attribute("batchyard.model.version", version)
        if len(self._timings) < _TIMINGS_MAX:
            self._timings.append((time.time_ns(), timing))

    def end(self, error: BaseException | None) -> None:
        """The caller has what it asked for, or an error."""
        self._has_ended = True
        for received_ns, timing in self._timings:
            self._add_parts(received_ns, timing)
        if error is not None:
            kind = error.code if isinstance(error, BatchyardError) else type(error).__name__
            self._span.set_attribute("error.type", kind)
            self._span.set_status(Status(StatusCode.ERROR, str(error)))
        self._span.end()

    def _add_parts(self, received_ns: int, timing: Timing) -> None:
        """The spans of what the server did for an answer, one after the other."""
        parts = {
            "queue": timing.queue_us,
            "gather": timing.gather_us,
            "wait": timing.wait_us,
            "execute": timing.execute_us,
        }
        travelled_ns = received_ns - self._began_ns - 1000 * sum(parts.values())
        at_ns = self._began_ns + max(travelled_ns, 0) // 2
        for name, us in parts.items():
            self._add_part(name, at_ns, at_ns + 1000 * us, timing)
            at_ns += 1000 * us
        self._add_part("reply", at_ns, max(received_ns, at_ns), timing)

    def _add_part(self, name: str, from_ns: int, to_ns: int, timing: Timing) -> None:
        part = self._tracer.start_span(
            f"batchyard.{name}", trace.set_span_in_context(self._span), start_time=from_ns
        )
        if name == "execute":
            part.set_attributes(
                {
                    "batchyard.batch.rows": timing.batch_rows,
                    "batchyard.batch.padded_rows": timing.padded_rows,
                    "batchyard.worker": timing.worker,
                }
            )
        part.end(to_ns)
