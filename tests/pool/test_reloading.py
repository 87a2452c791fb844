"""The configuration is read again: what changes at once, with a roll, or not. In virtual time."""

from __future__ import annotations

from typing import Any

from support.virtual_server import PATH, VirtualServer, config, versions

from batchyard.pool import events
from batchyard.pool.config import validate
from batchyard.pool.state import needing_restart
from batchyard.wire.control import Kind

OTHER = {"name": "n", "path": "/models/n"}


def model(**fields: Any) -> dict[str, Any]:
    return {"name": "m", "path": PATH, **fields}


def reload(server: VirtualServer, *models: dict[str, Any], **pool: Any) -> None:
    found = versions(1)
    found["n"] = {7: found["m"][1]}
    server.happens(events.ConfigurationRead(config(list(models), **pool), found))


def test_what_only_the_broker_minds_is_told_at_once() -> None:
    server = VirtualServer()
    reload(
        server,
        model(
            batching={"max_batch_size": 7},
            retry=False,
            batch_execution_timeout=3.0,
            version_labels={"stable": 1},
        ),
    )
    (told,) = server.models
    assert told.batching["max_batch_size"] == 7
    assert (told.retry, told.batch_execution_timeout_s, told.labels) == (False, 3.0, ["stable"])
    assert not server.loading
    assert not server.of_kind(Kind.RETIRE)


def test_nothing_new_is_not_told() -> None:
    server = VirtualServer()
    reload(server, model())
    assert not server.packets


def test_a_model_that_is_added_is_loaded_first() -> None:
    server = VirtualServer()
    reload(server, model(), OTHER)
    assert [(m.name, m.is_current) for m in server.models] == [("m", True), ("n", False)]
    server.rolls_on()
    assert [(m.name, m.is_current) for m in server.models] == [("m", True), ("n", True)]


def test_a_model_that_is_removed_goes_at_once() -> None:
    server = VirtualServer(
        config=config([model(), OTHER]), found={**versions(1), "n": {7: versions(1)["m"][1]}}
    )
    reload(server, OTHER)
    assert [m.name for m in server.models] == ["n"]
    assert not server.loading
    assert server.logs == ["reloaded", "version_switched"]


def test_a_label_moves_when_its_version_is_there() -> None:
    server = VirtualServer(config=config([model(version_labels={"stable": 1})]))
    moved = config([model(version_labels={"stable": 2})])
    server.happens(events.ConfigurationRead(moved, versions(1, 2)))
    assert [(m.version, m.labels) for m in server.models] == [(1, ["stable"]), (2, [])]
    server.rolls_on()
    assert [(m.version, m.labels) for m in server.models] == [(2, ["stable"])]


def test_a_label_for_a_version_that_is_not_served_is_told_and_no_more() -> None:
    server = VirtualServer()
    reload(server, model(version_labels={"old": 9}))
    assert server.logs == ["reloaded", "label_unserved"]
    assert server.models[0].labels == []


def test_a_callable_that_is_another_replaces_the_workers() -> None:
    def callable_model(path: str) -> dict[str, Any]:
        return model(runtime="python", path=path)

    def read(path: str) -> events.ConfigurationRead:
        found = {"m": {1: versions(1)["m"][1].__class__(path, 0)}}
        return events.ConfigurationRead(config([callable_model(path)]), found)

    first = read("a:b")
    server = VirtualServer(config=first.config, found={"m": dict(first.found["m"])})
    server.passes(5)
    server.happens(read("a:c"))
    assert server.log_fields["roll_started"] == {"versions": "m:1"}
    server.dies(server.loading[0].id, events.Death("no c", 4, ("m", 1), True))
    assert "version_failed" in server.logs
    server.rolls_on()
    assert {w.sources["m", 1].path for w in server.workers.values()} == {"a:b"}
    server.happens(read("a:c"))
    server.rolls_on()
    assert {w.sources["m", 1].path for w in server.workers.values()} == {"a:c"}


def test_a_refused_configuration_is_told_and_changes_nothing() -> None:
    server = VirtualServer()
    server.happens(events.ConfigurationRefused("models: is missing"))
    assert server.logs == ["reload_refused"]
    assert not server.packets


def test_what_comes_while_it_starts_waits() -> None:
    server = VirtualServer(serving=False)
    server.finds(1, 2)
    server.happens(events.BrokerListening(["ipc:///b"]))
    for id in list(server.workers):
        server.ready(id)
    assert server.is_reported_ready
    assert server.told() == {1: "current", 2: ""}
    server.rolls_on()
    assert server.told() == {2: "current"}


def test_what_needs_a_restart_is_named() -> None:
    server = VirtualServer()
    reload(server, model(), arena_mb=7, drain_timeout_s=1.0)
    assert server.logs == ["reloaded", "reload_incomplete"]
    first = config([model()])
    tables = {"models": [model()], "broker": {"region_mb": 1, "bind": ["tcp://127.0.0.1:1"]}}
    assert needing_restart(first, validate(tables, "t")) == ["broker.bind", "broker.region_mb"]


def test_the_drain_timeout_changes_at_once() -> None:
    server = VirtualServer()
    reload(server, model(), drain_timeout_s=1.0)
    server.happens(events.StopRequested())
    server.passes(1.1)
    assert server.failure is not None
