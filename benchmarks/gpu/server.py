"""The server that is measured: models on workers of one card, reached by a Unix socket."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterator, Sequence

from batchyard.benchmarks.gpu.feeding import BATCHES_A_WORKER
from batchyard.benchmarks.gpu.options import FRACTION, Options
from batchyard.benchmarks.gpu.subjects import Group
from batchyard.benchmarks.served import Model, configuration
from batchyard.cli.local_server import server_bound_to

# XLA compiles a large network for each shape, and looks for the fastest of many kernels.
_START_TIMEOUT_S = 1800.0
_MIB = 2**20
_FLOAT_NBYTES = 4
# What they are by default.
_ARENA_MB, _REGION_MB = 512, 256
# Blocks of a worker: a batch runs, one is on its way to the card, one on its way back, one forms.
_BLOCKS_A_WORKER = 5


@contextlib.contextmanager
def serving(
    models: Sequence[Model],
    options: Options,
    group: Group,
    workers: int = 1,
    fraction: float = FRACTION,
) -> Iterator[str]:
    """The endpoint of a server with so many workers. Raises ServerDidNotStart."""
    worker = options.worker(group, fraction)
    batch_mb = batch_nbytes(options, group) / _MIB
    arena_mb = max(_ARENA_MB, math.ceil(_BLOCKS_A_WORKER * workers * batch_mb))
    # Any of the clients may have to hold all that is under way, and its answers.
    region_mb = max(_REGION_MB, math.ceil(2 * BATCHES_A_WORKER * workers * batch_mb))
    text = f"[broker]\nregion_mb = {region_mb}\n"
    text += configuration(models, workers, worker, {"arena_mb": arena_mb})
    with tempfile.TemporaryDirectory(prefix="batchyard-") as folder:
        path = f"{folder}/bench.toml"
        with open(path, "w") as file:
            file.write(text)
        bind = [f"ipc://{folder}/broker"]
        with server_bound_to(bind, [path], start_timeout_s=_START_TIMEOUT_S) as endpoints:
            yield endpoints[0]


def batch_nbytes(options: Options, group: Group) -> int:
    """Of a batch's inputs."""
    return math.prod((options.batch, *group.network.row)) * _FLOAT_NBYTES
