"""The reference for tensors: one thread copies the rows of a batch, from warm memory to warm."""

from __future__ import annotations

import numpy as np

from batchyard.benchmarks.timing import calls_per_s

# An image of 224 × 224 × 3 float32, and so many to a batch.
IMAGE_SHAPE = (224, 224, 3)
IMAGE_NBYTES = 224 * 224 * 3 * 4
BATCH = 16


class Memcpy:
    """Buffers of a batch of images, touched before they are measured."""

    def __init__(self) -> None:
        self._source = np.ones(BATCH * IMAGE_NBYTES, np.uint8)
        self.target = np.zeros_like(self._source)

    def gb_per_s(self, seconds: float) -> float:
        """How many 10⁹ bytes are copied a second."""
        copies = calls_per_s(lambda: np.copyto(self.target, self._source), seconds)
        return copies * self._source.nbytes / 1e9
