"""PyTorch's networks as ``python`` models: ``batchyard.benchmarks.gpu.models.pytorch_served:NAME``.

With device_arrays they get arrays on the card and leave their answer there; else they copy both
themselves, as any function would.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from batchyard.benchmarks.gpu.models.pytorch_networks import build, device
from batchyard.benchmarks.gpu.subjects import network_of

# A client's memory is read-only, and nothing here writes to it.
warnings.filterwarnings("ignore", "The given NumPy array is not writable")
Function = Callable[[dict[str, Any]], dict[str, Any]]


def __getattr__(name: str) -> Function:
    """``resnet50_float16`` and the others, built when they are asked for: a worker has few."""
    return _function(*network_of(name))


def _function(network: str, precision: str) -> Function:
    call = build(network, precision)
    card = device()

    def run(inputs: dict[str, Any]) -> dict[str, Any]:
        x = inputs["x"]
        if isinstance(x, np.ndarray):
            return {"y": call(torch.from_numpy(x).to(card)).cpu().numpy()}
        return {"y": call(torch.from_dlpack(x))}

    return run
