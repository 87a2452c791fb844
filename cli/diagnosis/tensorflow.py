"""TensorFlow, as a process of its own finds it: whether it imports, and what it sees."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from batchyard.cli.diagnosis.finding import Finding, failure, ok, warning

_CHECK = "tensorflow"
_PIP = "pip install 'batchyard[cpu]' or 'batchyard[gpu]'"


@dataclass(frozen=True, slots=True)
class SeenGpu:
    """A GPU as TensorFlow sees it; the compute capability, (8, 0), is empty if it is not known."""

    name: str
    compute_capability: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Sight:
    """What the process said, or ``error``: why it said nothing. ``log`` is its standard error.

    ``compute_capabilities`` are those that the build has kernels for: sm_80 for a card of 8.0
    and its minor successors, compute_90 for what the driver can compile for cards from 9.0 on.
    """

    error: str = ""
    version: str = ""
    is_cuda_build: bool = False
    cuda_version: str | None = None
    compute_capabilities: tuple[str, ...] = ()
    gpus: tuple[SeenGpu, ...] = ()
    log: str = field(default="", repr=False)


def check_tensorflow(sight: Sight) -> Finding:
    """Whether it imports, and of what build it is."""
    if not sight.error:
        build = f"with CUDA {sight.cuda_version}" if sight.is_cuda_build else "for CPUs"
        return ok(_CHECK, f"{sight.version}, built {build}, imports")
    if "SIGILL" in sight.error:
        remedy = "This processor lacks AVX, which TensorFlow's wheels need; use another machine."
        return failure(_CHECK, f"does not import: {sight.error}", remedy)
    last = _last_line(sight.log)
    return failure(
        _CHECK,
        f"does not import: {sight.error}{': ' + last if last else ''}",
        f"Install it anew ({_PIP}), and see what python -c 'import tensorflow' says.",
    )


def check_devices(sight: Sight, visible: Sequence[str], wants_gpu: bool) -> list[Finding]:
    """Whether TensorFlow sees the GPUs that NVML and CUDA_VISIBLE_DEVICES leave visible.

    ``wants_gpu``: the configuration has workers on GPUs, so that it matters.
    """
    if sight.error or not (visible or sight.gpus):
        return []
    check = "tensorflow devices"
    found = f"TensorFlow sees {len(sight.gpus)} GPUs, NVML {len(visible)} that are visible"
    if len(sight.gpus) == len(visible):
        return [ok(check, found), *_check_capabilities(sight)]
    level = failure if wants_gpu else warning
    if not sight.is_cuda_build:
        found += "; this TensorFlow is built for CPUs"
        remedy = "pip uninstall tensorflow-cpu, then pip install 'batchyard[gpu]'."
    else:
        hint = _cuda_complaint(sight.log)
        found += f": {hint}" if hint else ""
        remedy = (
            "Install the CUDA libraries of this build (pip install 'batchyard[gpu]'), and a driver "
            f"for CUDA {sight.cuda_version}."
        )
    return [level(check, found, remedy)]


def _check_capabilities(sight: Sight) -> list[Finding]:
    findings = []
    for gpu in dict.fromkeys(sight.gpus):
        fit = kernels_for(gpu.compute_capability, sight.compute_capabilities)
        capability = ".".join(map(str, gpu.compute_capability))
        name = f"{gpu.name}, compute capability {capability}"
        if fit == "compiled":
            findings.append(
                warning(
                    "compute capability",
                    f"{name}: TensorFlow has no kernels for it, the driver compiles them at the "
                    "first start, which may take half an hour",
                    "Keep what it compiles: set CUDA_CACHE_PATH to a folder that stays and "
                    "CUDA_CACHE_MAXSIZE=4294967296.",
                )
            )
        elif fit == "none":
            remedy = "Use another card, or a TensorFlow that is built for this one."
            found = f"{name}: TensorFlow {sight.version} has no kernels for it"
            findings.append(failure("compute capability", found, remedy))
        else:
            findings.append(ok("compute capability", name))
    return findings


def kernels_for(capability: Sequence[int], built: Sequence[str]) -> str:
    """``there``, ``compiled`` by the driver when first used, or ``none``.

    A binary for x.y runs on x.z with z ≥ y; what is built as ``compute_`` is compiled for any later
    card. Source: https://docs.nvidia.com/cuda/cuda-c-programming-guide/#application-compatibility
    """
    if len(capability) != 2 or not built:
        return "there"  # nothing is known against it
    major, minor = capability
    targets = [(name.partition("_")[0], *_capability(name)) for name in built]
    # An entry compute_90 brings the binary for 9.0, too.
    if any(target[1] == major and target[2] <= minor for target in targets):
        return "there"
    is_later = any(kind == "compute" and (a, b) <= (major, minor) for kind, a, b in targets)
    return "compiled" if is_later else "none"


def _capability(name: str) -> tuple[int, int]:
    """``sm_90`` is (9, 0), ``sm_120`` (12, 0), ``sm_90a`` (9, 0)."""
    number = int("".join(c for c in name if c.isdecimal()) or 0)
    return number // 10, number % 10


def _cuda_complaint(log: str) -> str:
    for line in log.splitlines():
        if any(word in line for word in ("Cannot dlopen", "cuInit", "CUDA error", "libcuda")):
            return line.rpartition("] ")[2][:200]
    return ""


def _last_line(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


class Looking:
    """The process that imports TensorFlow, while others are looked at."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        """Starts it."""
        self._out, self._log = (tempfile.TemporaryFile("w+") for _ in range(2))  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "batchyard.pool.runtimes.sight"],
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=self._log,
            # In NVML's order; and what it says of CUDA is wanted.
            env={**environ, "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "TF_CPP_MIN_LOG_LEVEL": "0"},
        )

    def result(self, timeout_s: float) -> Sight:
        """What it says within that time; it is ended then."""
        try:
            code: int | None = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            code = None
        self.close()
        self._out.seek(0)
        self._log.seek(0)
        with self._out as out, self._log as log:
            return parse(code, out.read(), log.read(), timeout_s)

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()


def parse(code: int | None, out: str, log: str, timeout_s: float) -> Sight:
    """What a process that ended with ``code`` said; None: it did not end in time."""
    if code is None:
        return Sight(error=f"no answer within {timeout_s:g} s", log=log)
    if code < 0:
        return Sight(error=f"it died by {signal.Signals(-code).name}", log=log)
    if code:
        return Sight(error=f"exit code {code}", log=log)
    try:
        said: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    except (ValueError, IndexError):
        return Sight(error="it said nothing", log=log)
    gpus = tuple(SeenGpu(gpu["name"], tuple(gpu["compute_capability"])) for gpu in said["gpus"])
    return Sight(
        version=said["version"],
        is_cuda_build=said["is_cuda_build"],
        cuda_version=said["cuda_version"],
        compute_capabilities=tuple(said["compute_capabilities"]),
        gpus=gpus,
        log=log,
    )
