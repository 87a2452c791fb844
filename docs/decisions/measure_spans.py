"""What an exporter of spans does to a thread that must not wait.

A loop of steps of some 10 µs runs on its thread, as a busy broker does. Beside it, or in a process
of its own, a thread ends 2,000 spans a second, which OpenTelemetry's SDK sends by OTLP over HTTP to
a receiver that throws them away. Time in which the loop neither ran nor waited for a processor (as
the kernel counts it) it waited for the interpreter.

Needs batchyard[tracing]. Run: python docs/decisions/measure_spans.py
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from batchyard.clients.tracing import find_tracing
from batchyard.wire.tags import Timing

SPANS_PER_S = 2000
SECONDS = 4.0
ROUNDS = 3
CALLS = 2000


class Sink(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


def receive(server: HTTPServer) -> None:
    server.serve_forever()


def export(url: str) -> None:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{url}/v1/traces")))
    tracer = provider.get_tracer("measure")
    until = time.monotonic() + SECONDS + 1
    while time.monotonic() < until:
        for _ in range(SPANS_PER_S // 50):
            tracer.start_span("x", attributes={"a": 1, "b": "c"}).end()
        time.sleep(1 / 50)
    provider.shutdown()


def loop(name: str) -> None:
    """Prints how long its thread could not go on."""
    before, cpu_before, queued_before = time.perf_counter(), time.thread_time(), queued_s()
    longest = 0.0
    step_at = before
    while step_at < before + SECONDS:
        sum(range(800))
        now = time.perf_counter()
        longest = max(longest, now - step_at)
        step_at = now
    waited_s = (step_at - before) - (time.thread_time() - cpu_before) - (queued_s() - queued_before)
    print(
        f"{name}: waited for the interpreter {waited_s / SECONDS:.2%} of the time; longest step "
        f"{longest * 1e3:.1f} ms"
    )


def call_cost(url: str) -> None:
    """Prints what the spans of one call cost, export and all, as ``clients.spans`` makes them."""
    os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = url
    from batchyard.clients import spans

    tracing = find_tracing()
    assert tracing is not None
    cpu_before = time.process_time()
    for _ in range(CALLS):
        span = tracing.begin("m", "serving_default", "predict", None)
        assert span is not None
        span.timed(Timing(0, 10, 20, 30, 40, 1, 1, 0), 1)
        span.end(None)
        time.sleep(1e-3)
    cost_s = (time.process_time() - cpu_before) / CALLS
    print(f"a traced call costs {cost_s * 1e6:.0f} us of CPU")
    assert spans._own_provider is not None
    spans._own_provider.shutdown()


def queued_s() -> float:
    """How long this thread has waited for a processor."""
    return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9


def main() -> None:
    server = HTTPServer(("127.0.0.1", 0), Sink)
    sink = multiprocessing.Process(target=receive, args=(server,), daemon=True)
    sink.start()
    url = f"http://127.0.0.1:{server.server_port}"
    for _ in range(ROUNDS):
        loop("no spans           ")
        beside = threading.Thread(target=export, args=(url,))
        beside.start()
        loop("in the same process")
        beside.join()
        elsewhere = multiprocessing.Process(target=export, args=(url,))
        elsewhere.start()
        loop("in another process ")
        elsewhere.join()
    call_cost(url)
    sink.terminate()
    sink.join()


if __name__ == "__main__":
    main()
