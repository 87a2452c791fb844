"""Which frameworks are installed here and see a GPU."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_TIMEOUT_S = 180.0
_SIGHT = "batchyard.benchmarks.gpu.frameworks"
_TENSORFLOW_SIGHT = "batchyard.pool.runtimes.sight"


@dataclass(frozen=True, slots=True)
class Framework:
    """``why_not`` says why it cannot be used on a GPU here; empty where it can."""

    name: str
    version: str = ""
    cuda: str = ""
    why_not: str = ""

    def __str__(self) -> str:
        built = f" for CUDA {self.cuda}" if self.cuda else ""
        return f"{self.name} {self.version}{built}".strip()


def look_at(name: str) -> Framework:
    """Imports it in a process of its own; until that ends it takes memory of the card."""
    module = _TENSORFLOW_SIGHT if name == "tensorflow" else _SIGHT
    # What JAX takes at its first look would be nearly the whole card.
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    environment.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        ended = subprocess.run(
            [sys.executable, "-P", "-m", module, name],
            env=environment,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Framework(name, why_not=f"does not import within {_TIMEOUT_S:g} s")
    if ended.returncode:
        lines = ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"]
        return Framework(name, why_not=lines[-1][:200])
    return _read(name, json.loads(ended.stdout.splitlines()[-1]))


def _read(name: str, said: Mapping[str, Any]) -> Framework:
    cuda = str(said.get("cuda_version") or "")
    why_not = "" if said["gpus"] else "sees no GPU" if cuda else "is built for CPUs"
    return Framework(name, str(said["version"]), cuda, why_not)


def _pytorch() -> dict[str, Any]:
    torch = importlib.import_module("torch")
    count = torch.cuda.device_count()
    return {"version": torch.__version__, "cuda_version": torch.version.cuda, "gpus": count}


def _jax() -> dict[str, Any]:
    jax = importlib.import_module("jax")
    gpus = [device for device in jax.devices() if device.platform == "gpu"]
    version = gpus[0].client.platform_version if gpus else ""
    return {
        "version": jax.__version__,
        # "PJRT C API\ncuda 12090", or words that change.
        "cuda_version": version.split()[-1] if version else "",
        "gpus": len(gpus),
    }


def _cupy() -> dict[str, Any]:
    cupy = importlib.import_module("cupy")
    runtime = cupy.cuda.runtime
    version = runtime.runtimeGetVersion()
    return {
        "version": cupy.__version__,
        "cuda_version": f"{version // 1000}.{version % 1000 // 10}",
        "gpus": runtime.getDeviceCount(),
    }


_LOOKS: Mapping[str, Callable[[], dict[str, Any]]] = {
    "pytorch": _pytorch,
    "jax": _jax,
    "cupy": _cupy,
}
NAMES = ("tensorflow", *_LOOKS)

if __name__ == "__main__":
    print(json.dumps(_LOOKS[sys.argv[1]]()))
