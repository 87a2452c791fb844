"""A PyTorch model: on a GPU without a copy in host memory, on a CPU as it is.

`device_arrays = true` in pytorch.toml has the worker bring the batch to the card. What is returned
there goes straight into shared memory; the function does not wait for either.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def _load() -> torch.nn.Module:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(784, 512),
        torch.nn.ReLU(),
        torch.nn.Linear(512, 10),
        torch.nn.Softmax(dim=-1),
    )
    weights = os.environ.get("MODEL_WEIGHTS")
    if weights:
        # The file of torch.save(model.state_dict(), …).
        model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return model.eval().to(_DEVICE)


_model = _load()


# Of a thread: the worker loads, warms up and calls a model on one.
@torch.inference_mode()
def classify(inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """images: float32 (?, 784). scores: float32 (?, 10)."""
    return {"scores": _model(torch.from_dlpack(inputs["images"]))}
