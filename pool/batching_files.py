"""How requests for one version become batches, where its folder says so itself."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from batchyard.pool.config import explain
from batchyard.pool.config_models import Batching
from batchyard.wire.errors import ConfigurationError, InvalidArgument

# What TensorFlow Serving calls it.
_FILE = "batching_params.pbtxt"
# What its parameters do not have, or share among all models.
_OTHER_KEYS = {"num_batch_threads", "queue_delay_target_micros"}


def version_batching(folder: Path, batching: Batching) -> Batching:
    """What the file in a version's folder says; without one it is ``batching``.

    Raises ConfigurationError when that cannot be.
    """
    # Few need it, and protobuf with it.
    from batchyard.wire.tensorflow_serving.batching_parameters import batching_table
    from batchyard.wire.tensorflow_serving.file_messages import BatchingParameters, parse

    path = folder / _FILE
    if not path.exists():
        return batching
    others = batching.model_dump(include=_OTHER_KEYS)
    try:
        table = batching_table(parse(path, BatchingParameters))
        buckets = batching.length_buckets if "pad_variable_length_inputs" in table else []
        return Batching.model_validate({**others, "length_buckets": buckets, **table})
    except InvalidArgument as error:
        raise ConfigurationError(f"{path}: {error.message}") from None
    except ValidationError as error:
        lines = [f"{path}: {explain(detail)}" for detail in error.errors()]
        raise ConfigurationError("; ".join(lines)) from None
