"""What a server tells by HTTP: whatever happens to it, and to the process that tells."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from support.debian import promtool
from support.http_get import Answer, get
from support.prometheus_text import Scraped
from support.server import BROKER, METRICS, WORKER, Server, callable_path, model_table
from support.waiting import DEADLINE_S, wait_until

from batchyard.clients.errors import DeadlineExceeded

CONFIG = (
    "[metrics]\nport = 0\n"
    + model_table("gated", callable_path("gated"), max_batch_size=1)
    + model_table("echo", callable_path("echo"), max_batch_size=4, allowed_batch_sizes=[4])
)
NO_GATE = {"gate": np.zeros(1, np.int64)}
ROW = {"x": np.zeros((1, 2), np.float32)}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """It binds TCP only, so that the gateway has an endpoint of its own."""
    with Server(config=CONFIG) as made:
        yield made


def scrape(server: Server) -> Scraped:
    answer = get(server.metrics_url, "/metrics")
    assert answer.status == 200
    return Scraped(answer.text)


def misses(scraped: Scraped) -> float:
    return sum(scraped.values("batchyard_deadline_misses_total", model="gated"))


def readiness(server: Server) -> Answer:
    return get(server.metrics_url, "/readyz")


def wait_until_ready(server: Server) -> None:
    wait_until(
        lambda: readiness(server).status == 200, lambda: f"ready, but {readiness(server).text}"
    )


def test_requests_are_counted_where_prometheus_sees_them(server: Server) -> None:
    before = scrape(server)
    with server.client() as client:
        for _ in range(3):
            client.predict("echo", ROW)
        held = client.submit("gated", {"gate": np.array([1])})
        server.gates.wait_until_reached(1)
        # The worker is given one ahead, which runs too late; another waits until it is too late.
        late = [client.submit("gated", NO_GATE, timeout=0.5) for _ in range(2)]
        for future in late:
            with pytest.raises(DeadlineExceeded):
                future.result(15)
        server.gates.open(1)
        held.result(15)
        wait_until(lambda: misses(scrape(server)) - misses(before) == 2, "both are counted")
    after = scrape(server)
    echo = {"model": "echo", "version": "1", "signature": "serving_default"}

    def grown(name: str, **labels: str) -> float:
        return sum(after.values(name, **labels)) - sum(before.values(name, **labels))

    assert grown("batchyard_requests_total", code="OK", **echo) == 3
    assert grown("batchyard_request_seconds_count", **echo) == 3
    assert grown("batchyard_padding_rows_total", model="echo") == 9
    assert grown("batchyard_batch_rows_bucket", model="echo", le="1.0") == 3
    expired = grown("batchyard_deadline_misses_total", model="gated", cause="expired")
    assert grown("batchyard_requests_total", model="gated", code="DEADLINE_EXCEEDED") == expired
    assert after.value("batchyard_up") == after.value("batchyard_ready") == 1


def test_the_other_paths(server: Server) -> None:
    url = server.metrics_url
    assert (get(url, "/healthz").text, get(url, "/readyz").text) == ("ok\n", "ok\n")
    stats = get(url, "/stats.json").json
    assert {"version", "devices", "broker", "workers", "models", "arena", "bounds"} <= set(stats)
    assert get(url, "/metrics", Accept="application/openmetrics-text; version=1.0.0").text.endswith(
        "# EOF\n"
    )
    assert server.endpoints == [server.endpoint], "its own endpoint is nobody else's"


def test_who_sends_what_is_no_http_does_not_fill_the_log(server: Server) -> None:
    host, _, port = server.metrics_url.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=DEADLINE_S) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHo\x1b[2Jst: x\r\n\r\n")
        assert connection.makefile("rb").readline().split()[1] == b"400"
    assert "Traceback" not in server.log


def test_promtool_finds_nothing_wrong(server: Server) -> None:
    assert not promtool("check", "metrics", stdin=get(server.metrics_url, "/metrics").text)


def test_a_gateway_that_dies_is_replaced_and_nobody_notices(server: Server) -> None:
    url = server.metrics_url
    with server.client() as client:
        for _ in range(2):
            (pid,) = server.processes(METRICS)
            os.kill(pid, signal.SIGKILL)
            # Whoever comes meanwhile waits for the next.
            assert get(url, "/healthz").text == "ok\n"
            client.predict("echo", ROW)
            assert pid not in server.processes(METRICS)
    assert "event=gateway_died" in server.log


def test_a_broker_that_hangs_is_told_of(server: Server) -> None:
    """Also in the log, as the configuration says by then."""
    path = server.folder / "config.toml"
    path.write_text('[log]\nformat = "json"\n' + path.read_text())
    server.signal(signal.SIGHUP)
    wait_until(lambda: '"reloaded"' in server.log, lambda: f"reloaded: {server.log_tail}")
    (broker,) = server.processes(BROKER)
    os.kill(broker, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor() as pool:
            health, ready, metrics, stats = pool.map(
                lambda path: get(server.metrics_url, path),
                ("/healthz", "/readyz", "/metrics", "/stats.json"),
            )
    finally:
        os.kill(broker, signal.SIGCONT)
    assert (health.status, ready.status, metrics.status, stats.status) == (503, 503, 200, 503)
    assert health.text == ready.text == "the broker does not answer\n"
    scraped = Scraped(metrics.text)
    assert (scraped.value("batchyard_up"), scraped.value("batchyard_ready")) == (0, 0)
    assert "error" in stats.json
    wait_until_ready(server)
    (line,) = [line for line in server.log.splitlines() if "broker_silent" in line]
    assert json.loads(line)["process"] == "metrics"


def test_scraping_goes_on_while_the_broker_is_replaced(server: Server) -> None:
    started = scrape(server).value("batchyard_broker_start_time_seconds")
    (broker,) = server.processes(BROKER)
    os.kill(broker, signal.SIGKILL)

    def is_another() -> bool:
        scraped = scrape(server)
        assert scraped.value("batchyard_up") in (0, 1)
        return scraped.values("batchyard_broker_start_time_seconds") not in ([], [started])

    wait_until(is_another, "another broker is scraped")
    wait_until_ready(server)


def test_restarts_of_workers_are_counted(server: Server) -> None:
    wait_until_ready(server)
    (before,) = scrape(server).values("batchyard_worker_restarts_total")
    (worker,) = server.processes(WORKER)
    os.kill(worker, signal.SIGKILL)
    wait_until(
        lambda: scrape(server).values("batchyard_worker_restarts_total") == [before + 1],
        "a restart is counted",
    )
    wait_until_ready(server)


def test_a_server_that_drains_is_not_ready_but_healthy() -> None:
    with Server(config=CONFIG, ipc=True) as server, server.client() as client:
        held = client.submit("gated", {"gate": np.array([1])})
        server.gates.wait_until_reached(1)
        server.signal(signal.SIGTERM)
        answer = wait_until(
            lambda: (a := readiness(server)).status == 503 and a, "the server is not ready"
        )
        assert answer.text == "the server is shutting down\n"
        assert get(server.metrics_url, "/healthz").status == 200
        assert scrape(server).value("batchyard_draining") == 1
        server.gates.open(1)
        held.result(15)
        assert server.wait_for_exit() == 0


def test_a_server_that_starts_is_not_ready(slow_model: str) -> None:
    """The port is known before the server is ready, where it was chosen."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
    config = f"[metrics]\nport = {port}\n" + model_table("slow", slow_model)
    url = f"http://127.0.0.1:{port}"

    def reason() -> str:
        with contextlib.suppress(ConnectionRefusedError):
            return get(url, "/readyz").text
        return ""

    with Server(config=config, wait=False):
        wait_until(lambda: "slow" in reason(), lambda: f"it waits for the model, not {reason()!r}")
        assert reason() == (
            "no worker is READY\nmodel 'slow' is not AVAILABLE: version 1 is LOADING\n"
        )
        assert get(url, "/healthz").status == 200


def test_a_port_that_is_taken_is_told_before_anything_starts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        echo = ("--model", f"echo={callable_path('echo')}", "--metrics-port", port)
        with Server(*echo, wait=False) as server:
            assert server.wait_for_exit() == 2
            assert f"cannot listen at 127.0.0.1 port {port}" in server.log
            assert "is another server running there" in server.log
