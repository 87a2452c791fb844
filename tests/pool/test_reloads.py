"""Gateways have other models served: one request after the other, each with one answer. In virtual
time."""

from __future__ import annotations

from typing import Any

from support.virtual_server import PATH, VirtualServer, config, versions

from batchyard.pool import events
from batchyard.pool.events import Cause, Death
from batchyard.wire import control

TABLES: list[dict[str, Any]] = [{"name": "m", "path": PATH}]
ALL = config([{"name": "m", "path": PATH, "version_policy": "all"}])
BAD = Death("it is broken", control.EXIT_MODEL, ("m", 2), True)


def asked(server: VirtualServer, *tickets: int) -> None:
    for ticket in tickets:
        server.happens(events.ModelsRequested(ticket, TABLES))


def reads(server: VirtualServer, cause: Cause = Cause.GATEWAY, *numbers: int) -> None:
    server.happens(events.ConfigurationRead(ALL, versions(*(numbers or (1, 2))), cause))


def test_it_is_answered_when_all_is_served() -> None:
    server = VirtualServer()
    asked(server, 7)
    assert server.read_models == [TABLES]
    reads(server)
    assert not server.reloads
    server.rolls_on()
    assert server.reloads == {7: "OK"}
    assert server.told() == {1: "", 2: "current"}


def test_what_changes_nothing_is_answered_at_once() -> None:
    server = VirtualServer()
    asked(server, 7)
    reads(server, Cause.GATEWAY, 1)
    assert server.reloads == {7: "OK"}


def test_bad_tables_change_nothing() -> None:
    server = VirtualServer()
    asked(server, 7)
    server.happens(events.ConfigurationRefused("models[0].path: is missing", Cause.GATEWAY))
    assert server.reloads == {7: "INVALID_ARGUMENT: models[0].path: is missing"}
    assert server.told() == {1: "current"}
    assert "reload was refused" not in server.status


def test_a_version_that_does_not_load_is_named() -> None:
    server = VirtualServer()
    asked(server, 7)
    reads(server)
    server.dies(server.loading[0].id, BAD)
    server.rolls_on()
    assert server.reloads == {7: "FAILED_PRECONDITION: model 'm' version 2: it is broken"}
    assert server.told() == {1: "current", 2: "error"}


def test_a_label_that_cannot_be_had_is_named() -> None:
    server = VirtualServer()
    asked(server, 7)
    labelled = config([{"name": "m", "path": PATH, "version_labels": {"stable": 4}}])
    server.happens(events.ConfigurationRead(labelled, versions(1), Cause.GATEWAY))
    assert server.reloads[7].startswith("FAILED_PRECONDITION: model 'm': label 'stable' names")


def test_several_are_done_one_after_the_other() -> None:
    server = VirtualServer()
    asked(server, 1, 2)
    assert len(server.read_models) == 1
    reads(server)
    assert len(server.read_models) == 1
    assert server.holds_polls
    server.rolls_on()
    assert server.reloads == {1: "OK"}
    assert len(server.read_models) == 2
    assert server.holds_polls
    reads(server, Cause.GATEWAY, 1, 2)
    assert server.reloads == {1: "OK", 2: "OK"}
    assert not server.holds_polls


def test_they_wait_for_the_start() -> None:
    server = VirtualServer(serving=False)
    asked(server, 1)
    assert not server.read_models
    server.happens(events.BrokerListening(["tcp://127.0.0.1:1"]))
    server.ready(0)
    server.ready(1)
    assert server.read_models == [TABLES]


def test_what_is_read_later_replaces_it() -> None:
    for cause in (Cause.SIGNAL, Cause.POLL):
        server = VirtualServer()
        asked(server, 1)
        reads(server)
        server.happens(events.ConfigurationRead(config(), versions(1), cause))
        assert server.reloads[1].startswith("ABORTED: the server's own configuration was read")
        server.rolls_on()
        assert server.told() == {1: "current"}


def test_what_was_read_before_does_not() -> None:
    server = VirtualServer()
    asked(server, 1)
    server.happens(events.ConfigurationRead(config(), versions(1)))
    server.happens(events.ConfigurationRefused("bad"))
    reads(server)
    server.rolls_on()
    assert server.reloads == {1: "OK"}


def test_a_server_that_stops_answers_all() -> None:
    server = VirtualServer()
    asked(server, 1, 2)
    reads(server)
    server.happens(events.StopRequested())
    asked(server, 3)
    assert server.reloads == dict.fromkeys((1, 2, 3), "UNAVAILABLE: the server is stopping")
    reads(server)
    server.rolls_on()


def test_more_than_a_bound_are_told_so() -> None:
    server = VirtualServer()
    asked(server, *range(18))
    assert list(server.reloads) == [17]
    assert server.holds_polls
    assert server.reloads[17].startswith("RESOURCE_EXHAUSTED: 16 reloads wait already")


def test_how_a_model_is_run_is_not_a_callers_to_say() -> None:
    server = VirtualServer()
    server.happens(events.ModelsRequested(1, [*TABLES, {"name": "n", "runtime": "python"}]))
    assert server.reloads == {
        1: "INVALID_ARGUMENT: a model may have name, path, version_labels, version_policy here, "
        "not runtime"
    }
    assert not server.read_models


def test_a_service_manager_does_not_mistake_it_for_its_own() -> None:
    server = VirtualServer()
    server.happens(events.ReloadRequested())
    asked(server, 1)
    reads(server, Cause.GATEWAY, 1)
    reads(server, Cause.POLL, 1)
    assert not [notice for notice in server.notices if "READY" in notice][1:]
    reads(server, Cause.SIGNAL, 1)
    assert [notice for notice in server.notices if "READY" in notice][1:]
