"""What gRPC is told of its bounds."""

from __future__ import annotations

from batchyard.clients.gateways.grpc.serving import _channel_arguments

PENDING = ("grpc.server.max_pending_requests", "grpc.server.max_pending_requests_hard_limit")


def test_bursts_may_wait_as_far_as_the_configuration_says() -> None:
    options = {"max_message_mb": 2, "channel_arguments": {}}

    # By itself gRPC cancels calls from the 1000th on.
    arguments = dict(_channel_arguments(options))
    assert [arguments[name] for name in PENDING] == [20_000, 20_000]

    options["channel_arguments"] = dict.fromkeys(PENDING, 7)
    arguments = dict(_channel_arguments(options))
    assert [arguments[name] for name in PENDING] == [7, 7]
