"""The configuration of a benchmark's server is one that ``batchyard serve`` takes."""

from __future__ import annotations

import tomllib

from batchyard.benchmarks import scale, tensors
from batchyard.benchmarks.served import Model, configuration, one_thread
from batchyard.pool.config import validate


def test_savedmodel() -> None:
    model = Model("half", "/models/a folder", {"max_batch_size": 4, "batch_timeout_micros": 7})
    config = validate(tomllib.loads(configuration([model], 2, one_thread())), "benchmark")
    (served,) = config.models
    assert (served.name, served.path, served.runtime) == ("half", "/models/a folder", "savedmodel")
    assert served.batching.max_batch_size == 4
    assert served.batching.batch_timeout_micros == 7
    (group,) = config.pool.workers
    assert (group.device, group.count) == ("cpu", 2)
    assert group.tensorflow_intra_op_parallelism == 1
    assert group.tensorflow_inter_op_parallelism == 1


def test_callables() -> None:
    models = [*tensors.CALLABLES, scale.MODEL]
    config = validate(tomllib.loads(configuration(models, 1, {})), "benchmark")
    for served in config.models:
        assert served.runtime == "python"
        assert served.signature is not None
        assert served.signature.inputs["x"].shape[0] == -1
