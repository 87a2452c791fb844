"""Spans of calls: when there are any, what they say, and that they come from nowhere else."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from support.server import Server, callable_path, model_table
from support.spans import Receiver, children_of

from batchyard.clients import AsyncClient, Client
from batchyard.clients.errors import DeadlineExceeded, Internal, InvalidArgument
from batchyard.clients.tracing import find_tracing
from batchyard.wire.tags import Timing

pytest.importorskip("opentelemetry.sdk.trace", reason="needs opentelemetry-sdk")

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from batchyard.clients import spans as spans_module

MODELS = model_table("echo", callable_path("echo")) + model_table("fails", callable_path("fails"))
X = {"x": np.ones((2, 3), np.float32)}
PARTS = [f"batchyard.{part}" for part in ("queue", "gather", "wait", "execute", "reply")]
# The endpoint of a server as argument: one request, with whatever the environment asks for.
PROGRAM = """
import sys
import numpy as np
from batchyard.clients import Client
with Client(sys.argv[1]) as client:
    client.predict("echo", {"x": np.ones((2, 3), np.float32)}, request_id="order 7")
print("opentelemetry" in sys.modules)
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(config=MODELS) as server:
        yield server
        server.stop()


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """What a program that has configured OpenTelemetry exports."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    return exporter


def call_spans(spans: InMemorySpanExporter) -> list[ReadableSpan]:
    """Those of whole calls, in the order in which they ended."""
    return [span for span in spans.get_finished_spans() if span.kind is trace.SpanKind.CLIENT]


def attributes_of(span: ReadableSpan) -> dict[str, object]:
    return dict(span.attributes or {})


def parts_of(spans: InMemorySpanExporter, call: ReadableSpan) -> list[ReadableSpan]:
    return children_of(call, spans.get_finished_spans())


def test_a_call_and_where_its_time_went(server: Server, spans: InMemorySpanExporter) -> None:
    with Client(server.endpoint) as client:
        client.predict("echo", X, request_id="order 7")
    (call,) = call_spans(spans)
    assert call.name == "echo/predict"
    assert attributes_of(call) == {
        "rpc.system": "batchyard",
        "rpc.service": "echo",
        "rpc.method": "predict",
        "server.address": "127.0.0.1",
        "server.port": int(server.endpoint.rpartition(":")[2]),
        "network.transport": "tcp",
        "batchyard.model": "echo",
        "batchyard.model.version": 1,
        "batchyard.signature": "serving_default",
        "batchyard.request_id": "order 7",
    }
    parts = parts_of(spans, call)
    assert [part.name for part in parts] == PARTS
    assert attributes_of(parts[3]) == {
        "batchyard.batch.rows": 2,
        "batchyard.batch.padded_rows": 2,
        "batchyard.worker": 0,
    }
    # One after the other, inside of the call.
    times = [time for part in parts for time in (part.start_time or 0, part.end_time or 0)]
    assert times == sorted(times)
    assert (call.start_time or 0) <= times[0] < times[-1] <= (call.end_time or 0)


def test_it_is_in_the_callers_span(server: Server, spans: InMemorySpanExporter) -> None:
    tracer = trace.get_tracer_provider().get_tracer("test")
    with Client(server.endpoint) as client, tracer.start_as_current_span("mine") as mine:
        client.predict("echo", X)
    (call,) = call_spans(spans)
    assert call.parent == mine.get_span_context()


def test_all_ways_to_call(server: Server, spans: InMemorySpanExporter) -> None:
    async def ask() -> None:
        async with AsyncClient(server.endpoint) as client:
            await client.predict("echo", X)

    with Client(server.endpoint) as client:
        client.submit("echo", X).result()
        client.predict_many("echo", [X, X, {"x": np.ones((1, 3))}])
    asyncio.run(ask())
    calls = call_spans(spans)
    assert [call.name for call in calls] == ["echo/submit", "echo/predict_many", "echo/predict"]
    names = [[part.name for part in parts_of(spans, call)] for call in calls]
    # Of ``predict_many`` one dtype travelled in a message of its own.
    assert [sorted(each) for each in names] == [sorted(PARTS * times) for times in (1, 2, 1)]


def test_errors(server: Server, spans: InMemorySpanExporter) -> None:
    with Client(server.endpoint) as client:
        with pytest.raises(Internal):
            client.submit("fails", {"x": -np.ones((1, 1))}).result()
        with pytest.raises(InvalidArgument):
            client.predict("echo", 3)
    calls = call_spans(spans)
    assert [attributes_of(call)["error.type"] for call in calls] == ["INTERNAL", "INVALID_ARGUMENT"]
    assert all(call.status.status_code is trace.StatusCode.ERROR for call in calls)
    assert "must not be negative" in (calls[0].status.description or "")


def test_an_answer_after_the_end_is_too_late(
    spans: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    tracing = find_tracing()
    assert tracing is not None
    span = tracing.begin("m", "s", "predict", None)
    assert span is not None
    span.end(DeadlineExceeded("late"))
    span.timed(Timing(0, 1, 2, 3, 4, 5, 6, 7), 1)
    (call,) = spans.get_finished_spans()
    assert attributes_of(call)["error.type"] == "DEADLINE_EXCEEDED"
    # The SDK would complain of attributes that come after the end.
    assert not caplog.records


def test_what_is_not_sampled_does_not_travel(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = TracerProvider(sampler=ALWAYS_OFF)
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    tracing = find_tracing()
    assert tracing is not None
    assert tracing.begin("m", "s", "predict", None) is None
    with Client(server.endpoint) as client:
        client.predict("echo", X)


def test_times_that_do_not_fit_stay_in_order(spans: InMemorySpanExporter) -> None:
    """A server whose durations are longer than the whole call, as this side saw it."""
    tracing = find_tracing()
    assert tracing is not None
    span = tracing.begin("m", "s", "predict", None)
    assert span is not None
    span.sent_to("ipc:///run/batchyard/broker")
    span.timed(Timing(0, 60_000_000, 1, 2, 3, 4, 5, 6), 1)
    span.end(None)
    (call,) = call_spans(spans)
    assert attributes_of(call)["server.address"] == "/run/batchyard/broker"
    for part in parts_of(spans, call):
        assert (part.start_time or 0) <= (part.end_time or 0)


def run(server: Server, program: str = PROGRAM, **environment: str) -> bool:
    """Whether a program that makes one call loads OpenTelemetry."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, server.endpoint],
        env={**own, **environment},
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.stdout == "True\n"


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_SERVICE_NAME": "shop"},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
        {"OTEL_SDK_DISABLED": "True", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
    ],
)
def test_it_is_not_loaded_unless_asked_for(server: Server, environment: dict[str, str]) -> None:
    assert not run(server, **environment)


def test_the_environment_alone_has_spans_sent(server: Server) -> None:
    with Receiver() as receiver:
        assert run(server, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url, OTEL_SERVICE_NAME="shop")
        assert receiver.services == {"shop"}
        by_name = {span.name: span for span in receiver.spans}
        assert by_name.keys() == {"echo/predict", *PARTS}
        call = by_name["echo/predict"]
        assert all(by_name[part].parent_span_id == call.span_id for part in PARTS)
        assert {span.trace_id for span in receiver.spans} == {call.trace_id}


def test_without_the_package_nothing_happens(server: Server) -> None:
    assert not run(
        server,
        program=f"import sys\nsys.modules['opentelemetry'] = None\n{PROGRAM}".replace(
            '"opentelemetry" in sys.modules', "'batchyard.clients.spans' in sys.modules"
        ),
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1",
    )


def test_an_exporter_that_is_not_installed_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(spans_module, "_own_provider", None)
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "not-there")
    assert find_tracing() is None
    assert "calls are not traced: no exporter 'not-there'" in caplog.text
