"""What gateways are to a server: its start waits for them, its end too. In virtual time."""

from __future__ import annotations

import pytest
from support.virtual_server import KILLED, VirtualServer

from batchyard.pool import events
from batchyard.pool.events import Death
from batchyard.pool.standing import Phase
from batchyard.wire import control
from batchyard.wire.control import Kind


def starting() -> VirtualServer:
    server = VirtualServer(has_gateways=True, serving=False)
    server.happens(events.BrokerListening(["tcp://127.0.0.1:1"]))
    return server


def draining(*, has_gateways: bool = True) -> VirtualServer:
    server = VirtualServer(has_gateways=has_gateways)
    server.happens(events.StopRequested())
    assert server.phase is Phase.DRAINING
    return server


@pytest.mark.parametrize("workers_first", [True, False])
def test_it_is_ready_when_workers_and_gateways_are(workers_first: bool) -> None:
    server = starting()
    if workers_first:
        server.ready(0)
        server.ready(1)
        assert not server.is_reported_ready
        server.happens(events.GatewaysAnswer())
    else:
        server.happens(events.GatewaysAnswer())
        server.ready(0)
        assert not server.is_reported_ready
        server.ready(1)
    assert server.is_reported_ready


def test_a_gateway_that_cannot_start_ends_the_start() -> None:
    server = starting()
    refusal = Death("grpc: no such file", control.EXIT_CONFIGURATION, was_told=True)
    server.happens(events.GatewayFailed("grpc", refusal))
    assert server.failure == events.Fail(control.EXIT_CONFIGURATION, "grpc: no such file")
    server = starting()
    server.happens(events.GatewayFailed("rest-1", KILLED))
    assert server.failure == events.Fail(1, "rest-1 ended: signal SIGKILL")


def test_later_it_ends_nothing() -> None:
    server = VirtualServer(has_gateways=True)
    server.happens(events.GatewayFailed("rest", KILLED))
    assert server.phase is Phase.SERVING


def test_without_gateways_the_broker_is_told_to_drain_at_once() -> None:
    server = draining(has_gateways=False)
    assert server.of_kind(Kind.DRAIN)
    assert not server.gateways_drain
    server.happens(events.BrokerDrained())
    assert server.phase is Phase.STOPPED


def test_what_gateways_have_read_reaches_the_broker_before_it_refuses() -> None:
    server = draining()
    assert server.gateways_drain
    assert not server.of_kind(Kind.DRAIN)
    server.happens(events.GatewaysDrained())
    assert len(server.of_kind(Kind.DRAIN)) == 1
    server.happens(events.BrokerDrained())
    assert server.phase is Phase.STOPPED
    assert server.failure is None


def test_a_gateway_that_takes_long_does_not_keep_the_broker_from_draining() -> None:
    server = draining()
    server.passes(1.1)
    assert len(server.of_kind(Kind.DRAIN)) == 1
    server.happens(events.BrokerDrained())
    assert server.phase is Phase.DRAINING, "answers are still on their way"
    server.happens(events.GatewaysDrained())
    assert server.phase is Phase.STOPPED
    assert server.failure is None


def test_both_have_the_drain_timeout_and_no_more() -> None:
    server = draining()
    server.passes(1.1)
    server.happens(events.BrokerDrained())
    server.passes(29)
    assert server.failure is not None
    assert server.failure.message.startswith("gateways were still answering after drain_timeout_s")
    server = draining()
    server.happens(events.GatewaysDrained())
    server.passes(31)
    assert server.failure is not None
    assert server.failure.message.startswith("requests were still running after drain_timeout_s")


def test_a_broker_that_has_drained_ends_and_is_not_missed() -> None:
    server = draining()
    server.passes(1.1)
    server.happens(events.BrokerDrained())
    server.broker_dies(Death("exit code 0"))
    server.passes(5)
    assert server.broker is None
    assert "broker_died" not in server.logs
    server.happens(events.GatewaysDrained())
    assert server.phase is Phase.STOPPED
    assert server.failure is None


def test_a_broker_that_dies_meanwhile_drains_again() -> None:
    server = draining()
    server.broker_dies()
    server.passes(0.5)
    assert server.broker is not None
    assert not server.of_kind(Kind.DRAIN)
    server.passes(1)
    assert len(server.of_kind(Kind.DRAIN)) == 1
    server.broker_dies()
    server.happens(events.GatewaysDrained())
    assert server.phase is Phase.DRAINING, "there is no broker that has drained"
    server.passes(1)
    assert len(server.of_kind(Kind.DRAIN)) == 2
    server.happens(events.BrokerDrained())
    assert server.phase is Phase.STOPPED
