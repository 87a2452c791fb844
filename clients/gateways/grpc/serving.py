"""The gRPC server: where it listens, how large messages are, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc
from grpc_health.v1 import health_pb2_grpc

from batchyard.clients.async_client import AsyncClient
from batchyard.clients.gateways.availability import models_available
from batchyard.clients.gateways.child import GatewayProcess
from batchyard.clients.gateways.grpc.calls import Calls
from batchyard.clients.gateways.grpc.credentials import server_credentials
from batchyard.clients.gateways.grpc.health_service import HealthService
from batchyard.clients.gateways.grpc.model_service import ModelService
from batchyard.clients.gateways.grpc.prediction_service import PredictionService
from batchyard.clients.gateways.grpc.sockets import sent
from batchyard.clients.gateways.inference import Inference
from batchyard.wire.control import GatewaySettings
from batchyard.wire.errors import ConfigurationError

_CONNECT_TIMEOUT_S = 60.0
_MIB = 1 << 20
_PENDING_CALLS_MAX = 20_000
# How long callers are told, when all that they had asked is answered.
_GOODBYE_S = 0.5
# Who does not read what was sent, not even by then, is not waited for.
_SENT_TIMEOUT_S = 5.0
# Only the user whose server it is may use its UNIX socket, unless that is changed.
_SOCKET_UMASK = 0o177


@contextlib.asynccontextmanager
async def serve(process: GatewayProcess) -> AsyncIterator[None]:
    """Serves while the context is open. Raises ConfigurationError."""
    settings = process.settings
    # Before anything takes its time.
    credentials = _credentials(settings.options)
    async with AsyncClient(
        settings.endpoint, connect_timeout=_CONNECT_TIMEOUT_S, check_shapes=False
    ) as client:
        inference = Inference(client)
        calls, health = Calls(), HealthService(client)
        as_content = settings.options["enable_serialization_as_tensor_content"]
        reload = process.reload if settings.options["enable_model_reload"] else None
        server = grpc.aio.server(options=_channel_arguments(settings.options))
        server.add_generic_rpc_handlers(
            (
                PredictionService(inference, as_content=as_content).handler(calls),
                ModelService(inference, reload).handler(calls),
            )
        )
        health_pb2_grpc.add_HealthServicer_to_server(health, server)
        if settings.awaits_models:
            await models_available(client)
        _listen(server, settings, credentials)
        await health.look()
        await server.start()
        looking = asyncio.create_task(health.keep_looking())
        try:
            yield
        finally:
            looking.cancel()
            await _drain(calls, health)
            if settings.options["socket_path"] is not None:
                with contextlib.suppress(OSError):
                    os.unlink(settings.options["socket_path"])


async def _drain(calls: Calls, health: HealthService) -> None:
    """Answers the calls under way, and refuses what comes meanwhile, until the process ends.

    The server is never stopped: gRPC then resets calls that come by open connections (CANCELLED),
    and callers have to be told UNAVAILABLE, at which they try another server.
    """
    await health.drain()
    await calls.drain()
    await asyncio.sleep(_GOODBYE_S)
    await sent(_SENT_TIMEOUT_S)


def _channel_arguments(options: Mapping[str, Any]) -> list[tuple[str, Any]]:
    nbytes = options["max_message_mb"] * _MIB
    arguments = {
        # The supervisor holds the port, and other processes bind it as well.
        "grpc.so_reuseport": 1,
        "grpc.max_receive_message_length": nbytes,
        "grpc.max_send_message_length": nbytes,
        # gRPC's own bounds, 1000 and 3000 calls that no handler has got to yet, are passed by
        # bursts that are served within a second; beyond them callers get CANCELLED.
        "grpc.server.max_pending_requests": _PENDING_CALLS_MAX,
        "grpc.server.max_pending_requests_hard_limit": _PENDING_CALLS_MAX,
        **options["channel_arguments"],
    }
    return list(arguments.items())


def _credentials(options: Mapping[str, Any]) -> grpc.ServerCredentials | None:
    path = options["ssl_config_file"]
    return None if path is None else server_credentials(path)


def _listen(
    server: Any, settings: GatewaySettings, credentials: grpc.ServerCredentials | None
) -> None:
    options = settings.options
    where = [settings.address] if settings.address else []
    if options["socket_path"] is not None:
        where.append(f"unix:{options['socket_path']}")
    umask = os.umask(_SOCKET_UMASK)
    try:
        for address in where:
            try:
                if credentials is None:
                    server.add_insecure_port(address)
                else:
                    server.add_secure_port(address, credentials)
            except RuntimeError as error:
                hint = ""
                if credentials is not None:
                    hint = f", with the certificate of {options['ssl_config_file']}"
                raise ConfigurationError(f"cannot listen at {address}{hint}: {error}") from error
    finally:
        os.umask(umask)
