"""What a service manager is told of a server, and when. In virtual time."""

from __future__ import annotations

import pytest
from support.virtual_server import VirtualServer, config, versions

from batchyard.pool import events
from batchyard.pool.events import Death
from batchyard.pool.standing import Phase
from batchyard.wire import control

NO_MODEL = Death("model 'm' does not load", control.EXIT_MODEL, ("m", 2), True)
WATCHDOG_S = 30.0


def told(server: VirtualServer, name: str) -> list[object]:
    """The values that a variable was told with."""
    return [notice[name] for notice in server.notices if name in notice]


def test_ready_is_told_when_the_last_worker_is() -> None:
    server = VirtualServer(serving=False)
    server.happens(events.BrokerListening(["tcp://127.0.0.1:1"]))
    server.ready(0)
    assert not told(server, "READY")
    assert server.status == "Starting: 1 of 2 workers ready, loading m:1"
    server.ready(1)
    assert told(server, "READY") == [1]
    assert server.status == "Serving 1 model on 2 of 2 workers, rows waiting: 0"


def test_the_status_follows_the_queue_the_workers_and_the_broker() -> None:
    server = VirtualServer()
    server.passes(2)
    server.happens(events.BrokerAnswered(7))
    assert server.status == "Serving 1 model on 2 of 2 workers, rows waiting: 7"
    server.dies(0)
    assert server.status.startswith("Serving 1 model on 1 of 2 workers")
    server.broker_dies()
    assert server.status.endswith("; the broker is being replaced")
    server.happens(events.BrokerListening(["tcp://127.0.0.1:1"]))
    assert "broker" not in server.status


def test_nothing_is_told_when_nothing_changed() -> None:
    server = VirtualServer()
    server.notices.clear()
    for _ in range(5):
        server.passes(2)
        server.happens(events.BrokerAnswered(0))
    assert not server.notices


def test_a_reload_lasts_until_what_is_new_is_served_everywhere() -> None:
    server = VirtualServer()
    server.notices.clear()
    server.happens(events.ReloadRequested())
    assert server.notices == [{"RELOADING": 1, "MONOTONIC_USEC": 100_000_000}]
    server.happens(events.ConfigurationRead(config(), versions(1, 2)))
    assert "loading m:2" in server.status
    server.passes(1)
    assert not told(server, "READY")
    server.rolls_on()
    assert told(server, "READY") == [1]
    assert server.told()[2] == "current"


@pytest.mark.parametrize("reloads", [1, 2])
def test_a_reload_without_news_ends_when_all_that_were_asked_for_are_read(reloads: int) -> None:
    server = VirtualServer()
    server.notices.clear()
    for _ in range(reloads):
        server.happens(events.ReloadRequested())
    for read in range(reloads):
        assert told(server, "READY") == []
        assert read < reloads
        server.happens(events.ConfigurationRead(config(), versions(1)))
    assert told(server, "READY") == [1]


def test_a_refused_reload_ends_and_the_status_says_why_until_the_next() -> None:
    server = VirtualServer()
    server.notices.clear()
    server.happens(events.ReloadRequested())
    server.happens(events.ConfigurationRefused("arena_mb: must be positive"))
    assert told(server, "READY") == [1]
    assert server.status.endswith("; the last reload was refused: arena_mb: must be positive")
    server.happens(events.ReloadRequested())
    server.happens(events.ConfigurationRead(config(), versions(1)))
    assert "refused" not in server.status


def test_a_reload_of_what_does_not_load_ends_and_the_status_names_it() -> None:
    server = VirtualServer(beside=(True,))
    server.happens(events.ReloadRequested())
    server.happens(events.ConfigurationRead(config(), versions(1, 2)))
    server.notices.clear()
    (loading,) = server.loading
    server.dies(loading.id, NO_MODEL)
    server.rolls_on()
    assert told(server, "READY") == [1]
    assert server.status.endswith("; not loadable: m:2")


def test_each_sign_of_life_of_the_broker_feeds_the_watchdog_and_nothing_else_does() -> None:
    server = VirtualServer(watchdog_s=WATCHDOG_S)
    server.notices.clear()
    server.passes(60 / 33)
    server.happens(events.BrokerAnswered(0))
    assert told(server, "WATCHDOG") == [1]
    server.notices.clear()
    server.dies(0)
    server.finds(1, 2)
    server.happens(events.ReloadRequested())
    server.happens(events.ConfigurationRefused("bad"))
    server.passes(5)
    assert not told(server, "WATCHDOG")
    assert not told(VirtualServer(), "WATCHDOG")


def test_a_broker_that_takes_the_place_of_one_that_hung_has_time_to_start() -> None:
    server = VirtualServer(watchdog_s=WATCHDOG_S)
    server.passes(60 / 33)
    server.happens(events.BrokerAnswered(0))
    server.notices.clear()
    server.broker_dies()
    assert told(server, "WATCHDOG") == [1]
    # But not if none ever answers, however far it gets.
    for _ in range(3):
        server.happens(events.BrokerListening(["tcp://127.0.0.1:1"]))
        server.passes(20)
        server.broker_dies()
    assert told(server, "WATCHDOG") == [1]
    server.passes(1)
    server.happens(events.BrokerAnswered(0))
    assert told(server, "WATCHDOG") == [1, 1]


def test_a_broker_is_asked_as_soon_as_it_listens() -> None:
    """It may not live until the next question, and yet have worked."""
    server = VirtualServer(watchdog_s=WATCHDOG_S)
    server.broker_dies()
    server.pings = 0
    server.happens(events.BrokerListening(["tcp://127.0.0.1:1"]))
    assert server.pings == 1


@pytest.mark.parametrize("watchdog_s", [0.5, 3.0, 30.0, 33.0, 1000.0, float("inf")])
def test_a_broker_that_hangs_is_killed_with_a_third_of_the_watchdogs_time_left(
    watchdog_s: float,
) -> None:
    server = VirtualServer(watchdog_s=watchdog_s)
    heard = server.now
    # It was asked more often than once in half of that time.
    server.happens(events.BrokerAnswered(0))
    server.pings = 0
    server.passes(min(watchdog_s / 2, 2.0))
    assert server.pings
    while server.state.handle(events.TimePassed(), server.now)[-1:] != [events.KillBroker()]:
        server.now = server.state.next_deadline()
    assert server.now - heard == pytest.approx(min(22.0, watchdog_s * 2 / 3))


def test_time_is_asked_for_while_models_load_and_while_requests_are_finished() -> None:
    server = VirtualServer(serving=False)
    server.happens(events.BrokerListening(["tcp://127.0.0.1:1"]))
    server.passes(2)
    server.happens(events.BrokerAnswered(0))
    assert len(told(server, "EXTEND_TIMEOUT_USEC")) == 1
    for id in list(server.workers):
        server.ready(id)
    server.notices.clear()
    server.passes(2)
    server.happens(events.BrokerAnswered(0))
    assert not told(server, "EXTEND_TIMEOUT_USEC")
    server.happens(events.StopRequested())
    assert told(server, "STOPPING") == [1]
    assert server.status == "Draining: rows waiting: 0, 2 of 2 workers at work"
    server.passes(2)
    server.happens(events.BrokerAnswered(3))
    assert len(told(server, "EXTEND_TIMEOUT_USEC")) == 1
    assert "rows waiting: 3" in server.status
    server.happens(events.BrokerDrained())
    assert server.phase is Phase.STOPPED
    assert told(server, "STOPPING") == [1]
    assert server.status == "Stopped"


def test_one_that_fails_says_that_it_stops_before_it_does() -> None:
    server = VirtualServer(beside=(True,), serving=False)
    actions = server.state.handle(events.WorkerEnded(0, NO_MODEL), server.now)
    assert isinstance(actions[-1], events.Fail)
    assert actions[-2] == events.TellServiceManager({"STOPPING": 1, "STATUS": "Stopped"})
