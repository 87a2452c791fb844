"""What the supervisor says of models, as the broker's core takes it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from batchyard.broker.catalog import ServedModel
from batchyard.broker.policy import BatchingParameters
from batchyard.wire.control import ModelSettings


def served_models(settings: Iterable[ModelSettings]) -> list[ServedModel]:
    """A version for each; none is loaded yet."""
    return [_served(model) for model in settings]


def _served(model: ModelSettings) -> ServedModel:
    batching: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in model.batching.items()
    }
    return ServedModel(
        name=model.name,
        version=model.version,
        labels=tuple(model.labels),
        parameters=BatchingParameters(**batching),
        is_current=model.is_current,
        retry=model.retry,
        share=model.share,
        batch_execution_timeout_s=model.batch_execution_timeout_s,
        error=model.error,
    )
