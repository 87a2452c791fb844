"""Devices of known speed for the python runtime: the time of a batch depends on its rows."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np

# Seconds of a batch: BASE, and ROW for each row past FREE.
_BASE_S = float(os.environ.get("BATCHYARD_TUNING_BASE_S", "0.005"))
_ROW_S = float(os.environ.get("BATCHYARD_TUNING_ROW_S", "0.0005"))
_FREE_ROWS = int(os.environ.get("BATCHYARD_TUNING_FREE_ROWS", "0"))


def sleeper(inputs: dict[str, Any]) -> dict[str, Any]:
    """y = x + 1, after as long as that many rows take."""
    x = inputs["x"]
    time.sleep(_BASE_S + _ROW_S * max(0, len(x) - _FREE_ROWS))
    return {"y": np.add(x, 1)}
