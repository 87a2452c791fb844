"""[rest], [grpc] and [metrics]: what is taken, and what is refused with what words."""

from __future__ import annotations

from typing import Any

import pytest

from batchyard.pool.config import Config, validate
from batchyard.wire.errors import ConfigurationError


def config(**tables: Any) -> Config:
    models = [{"name": "m", "path": "/m"}]
    return validate({"models": models, **tables}, "test")


def test_all_are_off_by_default() -> None:
    made = config()
    assert made.rest.port is made.grpc.port is made.metrics.port is None
    assert not made.serves_by_gateway
    assert not config(metrics={"port": 1}).serves_by_gateway
    assert config(grpc={"socket_path": "/run/s"}).serves_by_gateway


def test_without_an_endpoint_there_is_a_gateway() -> None:
    assert config(broker={"bind": []}, rest={"port": 0}).broker.bind == []
    for tables in ({}, {"metrics": {"port": 0}}):
        with pytest.raises(ConfigurationError, match=r"broker\.bind: needs an endpoint, unless"):
            config(broker={"bind": []}, **tables)


@pytest.mark.parametrize(
    ("table", "values", "message"),
    [
        ("rest", {"port": 65_536}, "rest.port: Input should be less than or equal to 65535"),
        ("rest", {"timeout_s": 0.0}, "rest.timeout_s: Input should be greater than 0"),
        ("rest", {"processes": 0}, "rest.processes: Input should be greater than or equal to 1"),
        ("rest", {"monitoring_path": "metrics"}, "must begin with /, or be empty, not 'metrics'"),
        ("grpc", {"socket_path": "s"}, "grpc.socket_path: must be an absolute path, not 's'"),
        ("grpc", {"socket_path": "/" + 107 * "s"}, "may have 107 bytes"),
        (
            "grpc",
            {"socket_path": "/run/s", "processes": 2},
            "grpc: processes cannot share a UNIX socket: leave socket_path out, or set processes "
            "to 1, not 2",
        ),
        ("grpc", {"max_message_mb": 2048}, "less than or equal to 2047"),
        ("grpc", {"channel_arguments": {"a": 1.5}}, "grpc.channel_arguments.a"),
    ],
)
def test_what_is_wrong_is_named(table: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        config(**{table: values})
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("first", "second", "differ"),
    [
        ({"port": 8500}, {"port": 8500}, False),
        ({"port": 8500}, {"port": 8500, "host": "0.0.0.0"}, False),
        ({"port": 8500}, {"port": 8500, "host": "127.0.0.2"}, True),
        ({"port": 0}, {"port": 0}, True),
        ({"port": 8500}, {}, True),
    ],
)
def test_each_has_a_port_of_its_own(
    first: dict[str, Any], second: dict[str, Any], differ: bool
) -> None:
    for one, other in (("rest", "grpc"), ("rest", "metrics"), ("grpc", "metrics")):
        if differ:
            config(**{one: first, other: second})
            continue
        with pytest.raises(ConfigurationError, match=rf"{other}\.port and {one}\.port are both"):
            config(**{one: first, other: second})
