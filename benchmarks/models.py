"""The SavedModels that benchmarks serve, exported anew for every run."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from batchyard.cli.local_server import export

# The module that writes each, and its arguments.
_EXPORTERS = {
    "half_plus_two": ["batchyard.pool.runtimes.sample"],
    "mean": ["batchyard.benchmarks.tensorflow_models", "mean"],
    "mobilenet": ["batchyard.benchmarks.tensorflow_models", "mobilenet"],
}


@contextlib.contextmanager
def exported(*names: str) -> Iterator[dict[str, Path]]:
    """The folders of these models, of which each has version 1 in it. Raises ServerDidNotStart."""
    with tempfile.TemporaryDirectory(prefix="batchyard-") as folder:
        paths = {name: Path(folder) / name for name in names}
        for name, path in paths.items():
            export(path, *_EXPORTERS[name])
        yield paths
