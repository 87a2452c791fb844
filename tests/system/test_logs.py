"""The logs of a real server: every line in the configured form, and one request's way in them."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator

import numpy as np
import pytest
from support.log_lines import events, parse_text
from support.server import Server, callable_path, model_table, refused
from support.waiting import wait_until

from batchyard.clients import Client
from batchyard.clients.errors import Internal

MODELS = model_table("echo", callable_path("echo")) + model_table("fails", callable_path("fails"))
X = {"x": np.ones((2, 3), np.float32)}
BAD = {"x": -np.ones((2, 3), np.float32)}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    config = '[log]\nformat = "json"\nlevel = "debug"\nslow_request_ms = 0.001\n' + MODELS
    with Server(config=config) as server:
        yield server
        server.stop()


def wait_for(server: Server, event: str, request_id: str) -> dict[str, object]:
    """The first such event about a request."""

    def found() -> list[dict[str, object]]:
        named = events(server.log, event)
        return [fields for fields in named if request_id in str(fields.get("request_id"))]

    wait_until(lambda: bool(found()), lambda: f"no {event}\n{server.log_tail}")
    return found()[0]


def test_a_request_id_is_in_the_logs_of_broker_and_worker(server: Server) -> None:
    with server.client() as client, pytest.raises(Internal) as caught:
        client.predict("fails", BAD, request_id="order 7")
    assert caught.value.request_id == "order 7"
    failed = wait_for(server, "batch_failed", "order 7")
    assert (failed["process"], failed["level"], failed["rows"]) == ("worker-0", "warning", 2)
    assert wait_for(server, "request_failed", "order 7")["code"] == "INTERNAL"


def test_a_slow_request_says_where_its_time_went(server: Server) -> None:
    with server.client() as client:
        client.submit("echo", X, request_id="order 8", timeout=60).result()
        client.predict_many("echo", [X, X], request_id="order 9")
    slow = wait_for(server, "slow_request", "order 8")
    parts = [slow[f"{part}_ms"] for part in ("queue", "gather", "wait", "execute", "reply")]
    assert sum(map(float, map(str, parts))) == pytest.approx(slow["total_ms"], abs=1e-3)
    assert (slow["model"], slow["rows"], slow["worker"]) == ("echo", 2, 0)
    assert 0 < float(str(slow["deadline_left_ms"])) < 60_000
    assert wait_for(server, "slow_request", "order 9")


def test_every_line_is_an_object(server: Server) -> None:
    lines = [json.loads(line) for line in server.log.splitlines()]
    assert {line["process"] for line in lines} >= {"supervisor", "worker-0"}
    assert all(line["time"].endswith("Z") and line["pid"] > 1 for line in lines)


def test_the_form_changes_while_the_server_runs(server: Server) -> None:
    before = len(server.log)
    (server.folder / "config.toml").write_text(f'[log]\nlevel = "warning"\n{MODELS}')
    server.signal(signal.SIGHUP)

    def fails(client: Client) -> str:
        with contextlib.suppress(Internal):
            client.predict("fails", BAD, request_id="order 10")
        return server.log[before:]

    with server.client() as client:
        wait_until(
            lambda: all(
                f"level=warning process={who} event=" in fails(client)
                for who in ("broker", "worker-0")
            ),
            lambda: server.log_tail,
        )
    line = next(line for line in server.log.splitlines() if "event=batch_failed" in line[:99])
    assert parse_text(line)["request_id"] == "order 10"
    # Below the new level.
    assert "reloaded" not in server.log


def test_what_is_wrong_is_told_in_the_form_that_is_asked_for() -> None:
    with refused("--log-format", "json", config="[pool]\narena_mb = 0\n" + MODELS) as (code, log):
        assert code == 2
        assert "arena_mb" in json.loads(log)["reason"]
    config = '[log]\nformat = "json"\n[pool]\narena_mb = 0\n'
    with refused(config=config + MODELS) as (code, log):
        assert (code, json.loads(log)["event"]) == (2, "server_failed")
