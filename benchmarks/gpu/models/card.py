"""Python models without a framework: what CUDA shows a worker, and what breaks its context."""

from __future__ import annotations

import os
import uuid
from typing import Any

import numpy as np
from cuda.bindings import driver

# Writes to address 0.
_FAULT = b"""
.version 6.3
.target sm_75
.address_size 64
.visible .entry fault() {
    .reg .b64 %address;
    .reg .b32 %value;
    mov.u64 %address, 0;
    mov.u32 %value, 1;
    st.global.u32 [%address], %value;
    ret;
}
"""


def sight(inputs: dict[str, Any]) -> dict[str, Any]:
    """How many devices CUDA shows, the first one's UUID in hexadecimal digits, and the process."""
    _call(driver.cuInit, 0)
    # Before CUDA 13 the plain name was that of a call which tells a MIG instance's card.
    get_uuid = getattr(driver, "cuDeviceGetUuid_v2", driver.cuDeviceGetUuid)
    found = _call(get_uuid, _call(driver.cuDeviceGet, 0))
    return {
        "devices": np.full((1, 1), _call(driver.cuDeviceGetCount), np.int32),
        "uuid": np.array([[uuid.UUID(bytes=bytes(found.bytes)).hex.encode()]], object),
        "pid": np.full((1, 1), os.getpid(), np.int32),
    }


def fault(inputs: dict[str, Any]) -> dict[str, Any]:
    """An illegal access, after which this process can use the card no more."""
    _call(driver.cuInit, 0)
    context = _call(driver.cuDevicePrimaryCtxRetain, _call(driver.cuDeviceGet, 0))
    _call(driver.cuCtxSetCurrent, context)
    if not inputs["x"].any():
        # The warm-up.
        return {"x": np.zeros((1, 1), np.float32)}
    module = _call(driver.cuModuleLoadData, _FAULT + b"\0")
    function = _call(driver.cuModuleGetFunction, module, b"fault")
    _call(driver.cuLaunchKernel, function, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0)
    _call(driver.cuCtxSynchronize)
    raise AssertionError("an illegal access went unnoticed")


def _call(function: Any, *arguments: Any) -> Any:
    error, *results = function(*arguments)
    if error != driver.CUresult.CUDA_SUCCESS:
        raise RuntimeError(f"{function.__name__}: {error.name}")
    return results[0] if results else None
