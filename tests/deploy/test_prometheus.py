"""The files under ``deploy/`` for Prometheus and Grafana, and a Prometheus that reads a server."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from support.debian import program, promtool
from support.http_get import get
from support.metrics_sample import DEVICES, make_metrics
from support.prometheus_text import Scraped
from support.server import Server, callable_path, model_table
from support.waiting import wait_until

from batchyard.clients.gateways.exposition import Exposition

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus"
DASHBOARD = json.loads((DEPLOY / "grafana.json").read_text())
SERVED = "[metrics]\nport = 0\n" + model_table("echo", callable_path("echo"))
# What Grafana puts in.
VARIABLES = {"$instance": ".*", "$model": ".*", "$__rate_interval": "1m", "$__interval": "1m"}


def expressions() -> list[str]:
    """All that the dashboard asks Prometheus."""
    targets = [
        target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])
    ]
    return targets + [query["expr"] for query in DASHBOARD["annotations"]["list"]]


def told_names() -> set[str]:
    body, _ = Exposition(make_metrics(), DEVICES, "1").encode("text/plain")
    return Scraped(body.decode()).names


def test_the_rules_are_valid() -> None:
    promtool("check", "rules", "--lint-fatal", "alerts.yml", folder=RULES)
    promtool("check", "config", "prometheus.yml", folder=RULES)


def test_the_alerts_fire_when_they_should_and_not_otherwise() -> None:
    tested = (RULES / "alerts_test.yml").read_text()
    for alert in re.findall(r"- alert: (\w+)", (RULES / "alerts.yml").read_text()):
        assert re.search(rf"alertname: {alert}\n\s+eval_time: \w+\n\s+exp_alerts", tested), alert
        # It has to be silent somewhere, too.
        silent = re.search(rf"alertname: {alert}\n\s+eval_time: \w+\n(?!\s+exp_alerts)", tested)
        assert silent or "Misses" in alert, alert
    promtool("test", "rules", "alerts_test.yml", folder=RULES)


@pytest.mark.parametrize(
    "text",
    [(DEPLOY / "grafana.json").read_text(), (RULES / "alerts.yml").read_text()],
    ids=["dashboard", "alerts"],
)
def test_every_metric_that_is_asked_for_is_told(text: str) -> None:
    asked = set(re.findall(r"\bbatchyard_\w+", text))
    assert len(asked) > 5
    assert asked <= told_names()


def test_the_dashboard_is_one() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [panel["gridPos"] for panel in panels]
    for i, a in enumerate(places):
        assert a["x"] + a["w"] <= 24
        for b in places[:i]:
            beside = a["x"] >= b["x"] + b["w"] or b["x"] >= a["x"] + a["w"]
            assert beside or a["y"] >= b["y"] + b["h"] or b["y"] >= a["y"] + a["h"], (a, b)
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(panels)))
    known = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert used <= known | {"__rate_interval"}


# A real Prometheus


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str]]:
    """A server, and the URL of a Prometheus that reads it all the time."""
    executable = program("prometheus", "prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with Server(config=SERVED) as server:
        target = server.metrics_url.removeprefix("http://")
        config = (RULES / "prometheus.yml").read_text()
        config = config.replace("5s", "200ms").replace("127.0.0.1:9090", target)
        (folder / "prometheus.yml").write_text(config)
        (folder / "alerts.yml").write_text((RULES / "alerts.yml").read_text())
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [
                    executable,
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                    f"--storage.tsdb.path={folder / 'data'}",
                ],
                stdout=log,
                stderr=log,
            )
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until(lambda: is_listening(port), lambda: (folder / "log").read_text())
            yield server, url
        finally:
            process.kill()
            process.wait()


def is_listening(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def ask(url: str, expression: str) -> list[dict[str, Any]]:
    """What Prometheus answers to an expression; asserts that it is one."""
    answer = get(url, f"/api/v1/query?query={quote(expression)}")
    assert answer.status == 200, f"{expression}: {answer.text}"
    result: list[dict[str, Any]] = answer.json["data"]["result"]
    return result


def test_prometheus_reads_a_server(prometheus: tuple[Server, str]) -> None:
    server, url = prometheus
    with server.client() as client:
        for _ in range(5):
            client.predict("echo", {"x": np.zeros((1, 2), np.float32)})
    counted = 'batchyard_requests_total{model="echo", code="OK"} == 5'
    (found,) = wait_until(lambda: ask(url, counted), "the requests are there")
    assert found["metric"]["job"] == "batchyard"
    assert [sample["value"][1] for sample in ask(url, 'up{job="batchyard"}')] == ["1"]
    latency = "histogram_quantile(0.99, rate(batchyard_request_seconds_bucket[1m]))"
    wait_until(lambda: ask(url, latency), "there is a latency")


def test_prometheus_understands_the_dashboard(prometheus: tuple[Server, str]) -> None:
    _, url = prometheus
    for expression in expressions():
        for name, value in VARIABLES.items():
            expression = expression.replace(name, value)
        assert "$" not in expression
        ask(url, expression)


def test_prometheus_loads_the_alerts_and_none_fires(prometheus: tuple[Server, str]) -> None:
    _, url = prometheus

    def rules() -> list[dict[str, Any]]:
        (group,) = get(url, "/api/v1/rules").json["data"]["groups"]
        return [r for r in group["rules"] if r["health"] == "ok"]

    known = wait_until(lambda: len(rules()) == 9 and rules(), "all were evaluated")
    assert {rule["state"] for rule in known} == {"inactive"}
