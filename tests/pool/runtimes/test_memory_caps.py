"""Frameworks keep within a worker's share of its card, once a model imports them."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from batchyard.pool.runtimes import memory_caps
from batchyard.wire.control import WorkerSettings

GIB = 1 << 30
VARIABLES = (
    "CUPY_GPU_MEMORY_LIMIT",
    "XLA_PYTHON_CLIENT_MEM_FRACTION",
    "XLA_CLIENT_MEM_FRACTION",
    "XLA_PYTHON_CLIENT_PREALLOCATE",
    "XLA_PYTHON_CLIENT_ALLOCATOR",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_ALLOC_CONF",
)
# What the caps ask of each, and nothing more.
TORCH = f"""
calls = []
class cuda:
    is_available = staticmethod(lambda: True)
    mem_get_info = staticmethod(lambda: (0, {10 * GIB}))
    set_per_process_memory_fraction = staticmethod(calls.append)
"""
CUPY = """
limits = []
class Pool:
    def set_limit(self, size):
        limits.append(size)
get_default_memory_pool = Pool
"""


def settings(**fields: Any) -> WorkerSettings:
    base: dict[str, Any] = {
        "worker_id": 1,
        "slot": 0,
        "device": "gpu:0",
        "memory_limit_mb": None,
        "memory_growth": False,
        "intra_op_parallelism": 1,
        "inter_op_parallelism": 0,
        "cpu_affinity": None,
        "concurrent_batches": 1,
        "models": [],
    }
    return WorkerSettings(**{**base, **fields})


@pytest.fixture
def framework(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str, str], None]]:
    """Makes a module of that name and source importable, in place of any other."""
    for variable in VARIABLES:
        # What a test sets is gone after it, too.
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(memory_caps, "_total_nbytes", lambda: 10 * GIB)
    for name in memory_caps._CAPS:
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.delitem(sys.modules, name)
    finders = list(sys.meta_path)

    def make(name: str, source: str) -> None:
        (tmp_path / f"{name}.py").write_text(source)
        importlib.invalidate_caches()

    yield make
    sys.meta_path[:] = finders


def test_pytorch_gets_a_fraction_of_what_it_sees(framework: Callable[[str, str], None]) -> None:
    framework("torch", TORCH)
    memory_caps.cap_memory(settings(memory_limit_mb=4096))
    # Who only looks whether it is there has not imported it.
    assert importlib.util.find_spec("torch") is not None
    torch = importlib.import_module("torch")
    assert torch.calls == [0.4]
    assert type(torch.__loader__).__name__ == "SourceFileLoader"
    # Once for a worker, however many models it has.
    memory_caps.cap_memory(settings(memory_limit_mb=4096))
    assert torch.calls == [0.4]
    importlib.reload(torch)
    assert torch.calls == []


def test_what_is_imported_already_is_capped_at_once(framework: Callable[[str, str], None]) -> None:
    framework("torch", TORCH)
    torch = importlib.import_module("torch")
    memory_caps.cap_memory(settings(memory_limit_mb=1 << 20))
    assert torch.calls == [1.0]


def test_jax_gets_a_fraction_of_the_card(framework: Callable[[str, str], None]) -> None:
    framework("jax", "")
    memory_caps.cap_memory(settings(memory_limit_mb=2560))
    importlib.import_module("jax")
    assert os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.250000"


def test_with_growth_jax_takes_memory_as_it_needs_it(framework: Callable[[str, str], None]) -> None:
    framework("jax", "")
    memory_caps.cap_memory(settings(memory_growth=True))
    importlib.import_module("jax")
    assert os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"


def test_with_growth_what_the_user_has_set_counts(
    framework: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    framework("jax", "")
    memory_caps.cap_memory(settings(memory_growth=True))
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "true")
    importlib.import_module("jax")
    assert os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] == "true"


def test_cupy_gets_bytes(framework: Callable[[str, str], None]) -> None:
    framework("cupy", CUPY)
    memory_caps.cap_memory(settings(memory_limit_mb=4096))
    assert importlib.import_module("cupy").limits == [4 * GIB]
    assert os.environ["CUPY_GPU_MEMORY_LIMIT"] == str(4 * GIB)


@pytest.mark.parametrize(
    ("name", "variable", "value"),
    [
        ("cupy", "CUPY_GPU_MEMORY_LIMIT", "50%"),
        ("jax", "XLA_PYTHON_CLIENT_MEM_FRACTION", ".3"),
        ("jax", "XLA_CLIENT_MEM_FRACTION", ".3"),
        ("jax", "XLA_PYTHON_CLIENT_ALLOCATOR", "platform"),
        ("torch", "PYTORCH_ALLOC_CONF", "per_process_memory_fraction:0.3"),
    ],
)
def test_what_the_user_has_set_counts(
    framework: Callable[[str, str], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
    variable: str,
    value: str,
) -> None:
    # In the model's file, before the import.
    framework(name, {"cupy": CUPY, "torch": TORCH, "jax": ""}[name])
    memory_caps.cap_memory(settings(memory_limit_mb=4096))
    monkeypatch.setenv(variable, value)
    before = {each: os.environ.get(each) for each in VARIABLES}
    module = importlib.import_module(name)
    assert {each: os.environ.get(each) for each in VARIABLES} == before
    assert getattr(module, "limits", []) == getattr(module, "calls", []) == []
    assert f"{variable}={value}" in caplog.text


def test_a_framework_that_sees_no_card_is_used_all_the_same(
    framework: Callable[[str, str], None], caplog: pytest.LogCaptureFixture
) -> None:
    framework("torch", "class cuda:\n    is_available = staticmethod(lambda: False)")
    memory_caps.cap_memory(settings(memory_limit_mb=4096))
    importlib.import_module("torch")
    assert "sees no card" in caplog.text


@pytest.mark.parametrize(
    "unbound",
    [settings(), settings(device="cpu", memory_limit_mb=1), settings(device="cpu")],
)
def test_without_a_share_nothing_is_touched(unbound: WorkerSettings) -> None:
    before = list(sys.meta_path)
    memory_caps.cap_memory(unbound)
    assert sys.meta_path == before
