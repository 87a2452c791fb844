"""What becomes of TensorFlow's errors where there is no memory left: of a call, and of a load."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from support.in_tensorflow import refused_call, refused_load

Ask = Callable[..., Any]
OOM = "OOM when allocating tensor with shape[500000000] and type float on GPU:0\nHint: more"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("ResourceExhaustedError", OOM),
        ("InternalError", "Dst tensor is not initialized."),
        ("InternalError", "Failed to allocate: CUDA_ERROR_OUT_OF_MEMORY: out of memory"),
        ("InternalError", "CUBLAS_STATUS_ALLOC_FAILED"),
    ],
)
def test_call_without_memory(ask_tensorflow: Ask, kind: str, message: str) -> None:
    error = ask_tensorflow(refused_call, kind, message)
    assert error.code == "RESOURCE_EXHAUSTED"
    assert error.message == f"model 'm' signature 's': {message}"


def test_other_errors_of_the_card_keep_their_code(ask_tensorflow: Ask) -> None:
    message = "failed to synchronize: CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access"
    assert ask_tensorflow(refused_call, "InternalError", message).code == "INTERNAL"


@pytest.mark.parametrize(
    ("device", "limit_mb", "said"),
    [
        ("gpu:0", 512, "more than the 512 MiB of gpu:0 .* raise gpu_memory_limit_mb or per_"),
        ("gpu:1", None, "gpu:1 has no memory left for it; this worker has no cap"),
        ("cpu", None, "the worker has no memory left for it"),
    ],
)
def test_load_without_memory_names_the_cap(
    ask_tensorflow: Ask, device: str, limit_mb: int | None, said: str
) -> None:
    refusal = ask_tensorflow(refused_load, OOM, device, limit_mb)
    assert refusal.startswith("/models/m/1: ")
    # With what TensorFlow wanted.
    assert refusal.endswith(": " + OOM.partition("\n")[0])
    assert re.search(said, refusal)
