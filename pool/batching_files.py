"""How requests for one version become batches, where its folder says so itself."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from batchyard.pool.config import explain
from batchyard.pool.config_models import Batching
from batchyard.wire.errors import ConfigurationError


def version_batching(folder: Path, batching: Batching) -> Batching:
    """``batching``, with what the file in a version's folder says instead.

    Raises ConfigurationError when that cannot be.
    """
    # Few need it, and protobuf with it.
    from batchyard.wire.tensorflow_serving.batching_file import VERSION_FILE, read_batching_file

    path = folder / VERSION_FILE
    if not path.exists():
        return batching
    try:
        return Batching.model_validate({**batching.model_dump(), **read_batching_file(path)})
    except ValidationError as error:
        lines = [f"{path}: {explain(detail)}" for detail in error.errors()]
        raise ConfigurationError("; ".join(lines)) from None
