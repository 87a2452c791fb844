"""The arrows of import go one way: wire <- pool, broker, clients <- cli, benchmarks."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# A folder may import itself and these.
ALLOWED = {
    "wire": set(),
    "pool": {"wire"},
    "broker": {"wire"},
    "clients": {"wire"},
    "benchmarks": {"wire", "pool", "broker", "clients"},
    "cli": {"wire", "pool", "broker", "clients", "benchmarks"},
}
# Beyond its ALLOWED, a folder may import these modules.
ALLOWED_MODULES = {"benchmarks": ("batchyard.cli.local_server",)}
# TensorFlow is imported in workers, and in processes that benchmarks hold workers against.
TENSORFLOW = (
    "pool/runtimes/*.py",
    "benchmarks/tensorflow_*.py",
    "benchmarks/gpu/models/tensorflow_*.py",
    "benchmarks/peers/servers/*.py",
)
# The broker's core is driven in virtual time: no sockets, clocks or threads in it.
CORE = [
    *(f"broker/{name}.py" for name in ("policy", "queue", "catalog", "layout", "events", "state")),
    "broker/admission.py",
    "broker/target_inputs.py",
    "broker/measures.py",
    "broker/times.py",
    "wire/blocks.py",
]
IMPURE = {"zmq", "time", "threading", "socket", "select", "asyncio", "os"}


def imported_modules(path: Path) -> set[str]:
    """The absolute names of all modules that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


@pytest.mark.parametrize("folder", ALLOWED)
def test_folder_imports_only_what_it_may(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    for path in files:
        for name in imported_modules(path):
            if name.startswith(ALLOWED_MODULES.get(folder, ())):
                continue
            parts = name.split(".")
            if parts[0] == "batchyard" and len(parts) > 1:
                assert parts[1] in ALLOWED[folder] | {folder}, f"{path} imports {name}"


def test_only_runtimes_and_references_import_tensorflow() -> None:
    for folder in ALLOWED:
        for path in (ROOT / folder).rglob("*.py"):
            if any(path.relative_to(ROOT).match(pattern) for pattern in TENSORFLOW):
                continue
            roots = {name.partition(".")[0] for name in imported_modules(path)}
            assert "tensorflow" not in roots, path


@pytest.mark.parametrize("path", CORE)
def test_core_is_pure(path: str) -> None:
    roots = {name.partition(".")[0] for name in imported_modules(ROOT / path)}
    assert not roots & IMPURE


def test_client_loads_nothing_that_a_server_needs() -> None:
    loaded = subprocess.run(
        [sys.executable, "-c", "import batchyard.clients, sys; print(*sys.modules)"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    roots = {name.partition(".")[0] for name in loaded}
    needless = {"tensorflow", "pydantic", "click", "rich", "pynvml", "ml_dtypes", "opentelemetry"}
    gateways = {"aiohttp", "prometheus_client", "grpc", "google", "httptools", "orjson"}
    assert not roots & (needless | gateways)
    assert not {name for name in loaded if name.startswith(("batchyard.pool", "batchyard.broker"))}
