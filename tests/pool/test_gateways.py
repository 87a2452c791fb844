"""Which gateways there are, and when each is started."""

from __future__ import annotations

import pytest

from batchyard.pool.config import Config, validate
from batchyard.pool.gateways import GatewayLife, plan_gateways
from batchyard.pool.inventory import VisibleDevice
from batchyard.wire.control import EXIT_CONFIGURATION, EXIT_FAILURE

NEVER = float("inf")


def config(**metrics: object) -> Config:
    models = [{"name": "m", "path": "m.py:f", "runtime": "python"}]
    return validate({"models": models, "metrics": metrics}, "test")


def test_there_is_none_unless_it_has_a_port() -> None:
    assert not plan_gateways(config(), [])
    (plan,) = plan_gateways(config(port=0), [VisibleDevice(1, "GPU-1", "card", 1, "GPU-1")])
    assert (plan.name, plan.host, plan.port) == ("metrics", "127.0.0.1", 0)
    assert plan.devices == [("gpu:1", "GPU-1")]


def test_it_starts_once_the_broker_listens() -> None:
    life = GatewayLife()
    assert life.start_at == NEVER
    life.broker_listens(5.0)
    assert life.start_at == 5.0
    life.started()
    # Another broker is none of its concern.
    life.broker_listens(9.0)
    assert life.start_at == NEVER


def test_one_that_served_is_replaced_at_once() -> None:
    life = GatewayLife()
    for start in range(0, 1000, 10):
        life.started()
        life.answers(start)
        assert life.ended(start + 5.0, EXIT_FAILURE)
        assert life.start_at == start + 5.0


def test_one_that_never_answers_is_tried_ever_more_seldom_and_never_given_up() -> None:
    life = GatewayLife()
    pauses = []
    for _ in range(40):
        life.started()
        assert life.ended(100.0, EXIT_FAILURE)
        pauses.append(life.start_at - 100.0)
    assert pauses[0] == 0.0
    assert pauses == sorted(pauses)
    assert pauses[-1] == pytest.approx(30.0)
    life.started()
    life.answers(200.0)
    life.ended(300.0, EXIT_FAILURE)
    assert life.start_at == 300.0, "all is forgiven"


def test_what_would_end_in_the_same_way_is_not_tried_again() -> None:
    life = GatewayLife()
    life.started()
    assert not life.ended(1.0, EXIT_CONFIGURATION)
    assert life.start_at == NEVER
