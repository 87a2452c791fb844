"""Which card a process gets, and in which words it is told that there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.simulated_card import simulated_card

from batchyard.pool.gpu.driver import CudaError, Driver, NoCuda

_OPEN = """
import os, sys
from batchyard.pool.gpu.driver import Driver, NoCuda
for visible in sys.argv[1:]:
    os.environ["CUDA_VISIBLE_DEVICES"] = visible
    try:
        driver = Driver.open()
    except NoCuda as error:
        print("NoCuda:", error)
    else:
        print(driver.name, *driver.memory())
        driver.allocate(1 << 20)
        input()
"""


def test_cards_that_a_process_may_use(tmp_path: Path) -> None:
    pytest.importorskip("cuda.bindings.driver")
    cards = simulated_card(tmp_path, cards=3, total_mb=1000, context_mb=100)
    process = subprocess.Popen(
        [sys.executable, "-c", _OPEN, "-1", "GPU-nowhere", f"{cards.uuids[1]},0"],
        env={**os.environ, **cards.environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        for visible in ("-1", "GPU-nowhere"):
            assert process.stdout.readline() == (
                f"NoCuda: no card can be used, with CUDA_VISIBLE_DEVICES={visible}: cuInit: "
                "CUDA_ERROR_NO_DEVICE: no CUDA-capable device is detected\n"
            )
        assert process.stdout.readline() == f"Simulated H100 {900 << 20} {1000 << 20}\n"
        process.stdin.write("\n")
    # Not counted for a process that is gone.
    assert process.returncode == 0
    assert [cards.used(card) for card in range(3)] == [{}, {}, {}]


def test_binding_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    with pytest.raises(NoCuda, match=r"pip install .cuda-bindings>=12.9.2"):
        Driver.open()


def test_driver_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_library(flags: int) -> Any:
        raise RuntimeError("Failed to dlopen libcuda.so.1")

    utils = SimpleNamespace(get_cuda_native_handle=int)
    monkeypatch.setitem(sys.modules, "cuda.bindings.utils", utils)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", SimpleNamespace(cuInit=no_library))
    with pytest.raises(NoCuda, match=r"no CUDA driver .*: Failed to dlopen"):
        Driver.open()


def test_code_that_the_binding_does_not_know() -> None:
    def fails(*_: object) -> Any:
        raise KeyError(12345)

    def works(*_: object) -> tuple[int, bytes]:
        return 0, b"H100\0"

    calls = dict.fromkeys(("cuDeviceGet", "cuDeviceGetName", "cuDevicePrimaryCtxRetain"), works)
    driver = Driver(SimpleNamespace(cuCtxSynchronize=fails, **calls), int)
    with pytest.raises(CudaError, match="does not know the error: 12345") as raised:
        driver.synchronize()
    assert raised.value.is_sticky


def test_errors_that_break_the_context() -> None:
    assert CudaError("CUDA_ERROR_ILLEGAL_ADDRESS", "").is_sticky
    assert not CudaError("CUDA_ERROR_OUT_OF_MEMORY", "").is_sticky
    binding: Any = pytest.importorskip("cuda.bindings.driver")
    known = {code.name for code in binding.CUresult}
    # Names of the driver's, but for those that came after the oldest binding.
    from batchyard.pool.gpu import driver

    assert known >= driver._STICKY
