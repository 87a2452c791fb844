"""What TensorFlow's process says, and whether it is what NVML says."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from support.findings import levels, only

from batchyard.cli.diagnosis.tensorflow import (
    Looking,
    SeenGpu,
    Sight,
    check_devices,
    check_tensorflow,
    kernels_for,
    parse,
)

A100 = SeenGpu("NVIDIA A100", (8, 0))
BUILT = ("sm_60", "sm_70", "sm_80", "sm_89", "compute_90")
CUDA = Sight(
    version="2.21.0",
    is_cuda_build=True,
    cuda_version="12.5.1",
    compute_capabilities=BUILT,
    gpus=(A100,),
)


@pytest.mark.parametrize(
    ("code", "out", "log", "level", "says"),
    [
        (None, "", "", "failure", "no answer within 5 s"),
        (-4, "", "", "failure", "SIGILL"),
        (1, "", "Traceback\n  x\nImportError: libfoo.so", "failure", "ImportError: libfoo.so"),
        (0, "", "", "failure", "it said nothing"),
        (0, "hello\n", "", "failure", "it said nothing"),
    ],
)
def test_it_does_not_import(code: int | None, out: str, log: str, level: str, says: str) -> None:
    finding = only([check_tensorflow(parse(code, out, log, 5))])
    assert finding.level == level
    assert says in finding.found


def test_what_it_says_is_read() -> None:
    said = {
        "version": "2.21.0",
        "is_cuda_build": True,
        "cuda_version": "12.5.1",
        "cudnn_version": "9",
        "compute_capabilities": list(BUILT),
        "gpus": [{"name": "NVIDIA A100", "compute_capability": [8, 0]}],
    }
    # Something of TensorFlow's may stand before it.
    sight = parse(0, "noise\n" + json.dumps(said) + "\n", "", 5)
    assert sight == CUDA
    assert check_tensorflow(sight).found == "2.21.0, built with CUDA 12.5.1, imports"


@pytest.mark.parametrize(
    ("capability", "fit"),
    [
        ((6, 1), "there"),
        ((8, 0), "there"),
        ((8, 6), "there"),
        ((9, 0), "there"),
        ((12, 0), "compiled"),
        ((5, 2), "none"),
        ((), "there"),
    ],
)
def test_kernels(capability: tuple[int, ...], fit: str) -> None:
    assert kernels_for(capability, BUILT) == fit


def test_the_same_devices() -> None:
    assert levels(check_devices(CUDA, ["GPU-1"], wants_gpu=True)) == {
        "tensorflow devices": "ok",
        "compute capability": "ok",
    }
    assert check_devices(Sight(version="2"), [], wants_gpu=False) == []
    new = Sight(**{**_fields(CUDA), "gpus": (SeenGpu("B200", (10, 0)),)})
    assert levels(check_devices(new, ["GPU-1"], wants_gpu=True))["compute capability"] == "warning"


@pytest.mark.parametrize(("wants_gpu", "level"), [(True, "failure"), (False, "warning")])
def test_fewer_devices(wants_gpu: bool, level: str) -> None:
    cpu = only(check_devices(Sight(version="2.21.0"), ["GPU-1"], wants_gpu))
    assert (cpu.level, "built for CPUs" in cpu.found) == (level, True)
    log = "I0000 a\nW 1 gpu_device.cc:99] Cannot dlopen some GPU libraries. Skipping\n"
    blind = Sight(**{**_fields(CUDA), "gpus": (), "log": log})
    finding = only(check_devices(blind, ["GPU-1"], wants_gpu))
    assert finding.level == level
    assert finding.found.endswith(": Cannot dlopen some GPU libraries. Skipping")


def _fields(sight: Sight) -> dict[str, object]:
    return {name: getattr(sight, name) for name in Sight.__slots__}


GPU_TENSORFLOW = """
from types import SimpleNamespace as N

print("noise of a library")
__version__ = "2.21.0"
build = {
    "is_cuda_build": True, "cuda_version": "12.5.1", "cudnn_version": "9",
    "cuda_compute_capabilities": ["sm_60", "sm_70", "sm_80", "sm_89", "compute_90"],
}
details = {"device_name": "NVIDIA A100", "compute_capability": (8, 0)}
sysconfig = N(get_build_info=lambda: build)
config = N(
    list_physical_devices=lambda kind: [N(name="/physical_device:GPU:0")],
    experimental=N(get_device_details=lambda device: details),
)
"""


def looking(folder: Path, source: str) -> Looking:
    """At a module that stands for TensorFlow."""
    (folder / "tensorflow.py").write_text(source)
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    return Looking({**os.environ, "PYTHONPATH": path})


def test_a_process_that_sees_a_gpu(tmp_path: Path) -> None:
    assert looking(tmp_path, GPU_TENSORFLOW).result(60) == CUDA


def test_a_process_that_does_not_end_is_ended(tmp_path: Path) -> None:
    looked = looking(tmp_path, "import time; time.sleep(60)\n")
    assert looked.result(0.2).error == "no answer within 0.2 s"


def test_a_process_that_dies(tmp_path: Path) -> None:
    source = "import os, signal; os.kill(os.getpid(), signal.SIGILL)\n"
    sight = looking(tmp_path, source).result(60)
    assert "AVX" in only([check_tensorflow(sight)]).remedy
