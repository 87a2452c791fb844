"""``tensorflow.serving.ModelService``:
https://github.com/tensorflow/serving/blob/master/tensorflow_serving/apis/model_service.proto"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from batchyard.clients.gateways.grpc.calls import Call, Calls
from batchyard.clients.gateways.grpc.model_specs import spec_of
from batchyard.clients.gateways.inference import Inference
from batchyard.wire.errors import NUMBERS, InvalidArgument, PermissionDenied
from batchyard.wire.tensorflow_serving.messages import (
    GetModelStatusRequest,
    GetModelStatusResponse,
    ReloadConfigRequest,
    ReloadConfigResponse,
)
from batchyard.wire.tensorflow_serving.model_config import model_tables

MODEL_SERVICE = "tensorflow.serving.ModelService"
_OK = 0

Reload = Callable[[list[dict[str, Any]]], Awaitable[None]]


class ModelService:
    """Its methods. ``reload`` has the server serve other tables of ``[[models]]``; None: no caller
    may do that."""

    def __init__(self, inference: Inference, reload: Reload | None) -> None:
        self._inference = inference
        self._reload = reload

    def handler(self, calls: Calls) -> grpc.GenericRpcHandler:
        """What the server needs to serve it."""
        return calls.handler(
            MODEL_SERVICE,
            {
                "GetModelStatus": (GetModelStatusRequest, self.get_model_status),
                "HandleReloadConfigRequest": (ReloadConfigRequest, self.handle_reload_config),
            },
        )

    async def get_model_status(self, request: Any, call: Call) -> bytes:
        """The states of a model's versions."""
        response = GetModelStatusResponse()
        for status in await self._inference.status(spec_of(request), timeout=call.timeout):
            shown = response.model_version_status.add(version=status.version)
            shown.state = shown.State.Value(status.state)
            shown.status.error_code = NUMBERS.get(status.code, _OK)
            shown.status.error_message = status.message
        encoded: bytes = response.SerializeToString()
        return encoded

    async def handle_reload_config(self, request: Any, call: Call) -> bytes:
        """Serves the models that the request lists, and none else, from now on."""
        if self._reload is None:
            raise PermissionDenied(
                "HandleReloadConfigRequest is switched off on this server (enable_model_reload "
                "under [grpc], --enable_model_reload of batchyard tfs)"
            )
        if request.config.WhichOneof("config") != "model_config_list":
            raise InvalidArgument(
                "ServerModelConfig type not supported by HandleReloadConfigRequest. Only "
                "ModelConfigList is currently supported"
            )
        await self._reload(model_tables(request.config))
        response = ReloadConfigResponse()
        response.status.error_code = _OK
        encoded: bytes = response.SerializeToString()
        return encoded
