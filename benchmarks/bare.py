"""Bare TensorFlow as a reference, in a process of its own: see ``tensorflow_reference``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from batchyard.benchmarks.child import Child


class BareTensorFlow(Child):
    """Starts to import TensorFlow at once; what it is asked first waits for that."""

    def __init__(self) -> None:
        super().__init__("batchyard.benchmarks.tensorflow_reference")

    def load(self, name: str, model: Path, shape: Sequence[int]) -> None:
        """Loads version 1 of a model, to be called with a float32 batch of this shape."""
        self.ask("load", name=name, path=str(model / "1"), shape=list(shape))

    def p50_us(self, name: str, seconds: float) -> float:
        """The median duration of a call."""
        return float(self.ask("p50", name=name, seconds=seconds))

    def rows_per_s(self, name: str, seconds: float) -> float:
        """Rows a second, one call after the other."""
        return float(self.ask("rows_per_s", name=name, seconds=seconds))
