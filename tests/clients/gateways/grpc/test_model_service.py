"""What callers may have the server do."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from batchyard.clients.gateways.grpc.model_service import ModelService
from batchyard.wire.errors import PermissionDenied
from batchyard.wire.tensorflow_serving.messages import ReloadConfigRequest


def test_other_models_are_served_only_where_that_is_allowed() -> None:
    asked: list[list[dict[str, Any]]] = []

    async def reload(models: list[dict[str, Any]]) -> None:
        asked.append(models)

    request = ReloadConfigRequest()
    model = request.config.model_config_list.config.add(name="m", base_path="/m")
    model.model_platform = "tensorflow"
    nobody: Any = None

    async def ask(service: ModelService) -> None:
        await service.handle_reload_config(request, nobody)

    asyncio.run(ask(ModelService(nobody, reload)))
    assert asked == [[{"name": "m", "path": "/m"}]]
    with pytest.raises(PermissionDenied, match="enable_model_reload"):
        asyncio.run(ask(ModelService(nobody, None)))
