"""PyTorch: a python model that takes as many MiB of the card as its input says."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

_FLOATS_IN_MIB = 1 << 18


def allocate(inputs: dict[str, Any]) -> dict[str, Any]:
    """``mib``, float32 of shape (1, 1), in and out; at least one MiB is taken."""
    asked = inputs["mib"]
    is_on_card = not isinstance(asked, np.ndarray)
    mib = max(1, round((torch.from_dlpack(asked) if is_on_card else asked).item()))
    block = torch.ones(mib * _FLOATS_IN_MIB, device="cuda")
    held = (block[:1] + (mib - 1)).reshape(1, 1)
    return {"mib": held if is_on_card else held.cpu().numpy()}
