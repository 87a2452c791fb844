"""Whether workers will find NVIDIA's Multi-Process Service; a folder stands for /proc."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchyard.pool.mps import Daemon, Mps, read_mps


def run(proc: Path, pid: int, *command: str, directory: str = "") -> None:
    """A process, with that setting of its pipe directory."""
    (proc / str(pid)).mkdir(parents=True)
    (proc / str(pid) / "cmdline").write_bytes("\0".join([*command, ""]).encode())
    environ = f"HOME=/root\0CUDA_MPS_PIPE_DIRECTORY={directory}\0" if directory else "HOME=/root\0"
    (proc / str(pid) / "environ").write_bytes(environ.encode())


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    folder = tmp_path / "proc"
    folder.mkdir()
    (folder / "meminfo").touch()
    return folder


def test_none_is_there(proc: Path, tmp_path: Path) -> None:
    run(proc, 7, "less", "/usr/bin/nvidia-cuda-mps-control")
    environ = {"CUDA_MPS_PIPE_DIRECTORY": str(tmp_path / "none")}
    assert read_mps(environ, proc) == Mps(str(tmp_path / "none"), is_there=False)
    assert read_mps({}, proc).directory == "/tmp/nvidia-mps"
    assert read_mps({"CUDA_MPS_PIPE_DIRECTORY": ""}, proc).directory == "/tmp/nvidia-mps"


def test_a_daemon_that_listens_where_workers_look(proc: Path, tmp_path: Path) -> None:
    pipes = tmp_path / "pipes"
    pipes.mkdir()
    (pipes / "control").touch()
    (pipes / "nvidia-cuda-mps-control.pid").write_text("31\n")
    run(proc, 31, "/usr/bin/nvidia-cuda-mps-control", "-d", directory=str(pipes))
    mps = read_mps({"CUDA_MPS_PIPE_DIRECTORY": str(pipes)}, proc)
    assert mps.is_there
    assert mps.daemon == Daemon(31, proc.stat().st_uid, str(pipes))


def test_a_daemon_that_listens_elsewhere(proc: Path, tmp_path: Path) -> None:
    run(proc, 31, "nvidia-cuda-mps-control", "-f")
    mps = read_mps({"CUDA_MPS_PIPE_DIRECTORY": str(tmp_path)}, proc)
    assert (mps.is_there, mps.daemon) == (False, None)
    assert [daemon.directory for daemon in mps.daemons] == ["/tmp/nvidia-mps"]


def test_a_daemon_that_cannot_be_seen(proc: Path, tmp_path: Path) -> None:
    (tmp_path / "control").touch()
    (tmp_path / "nvidia-cuda-mps-control.pid").write_text("no number")
    mps = read_mps({"CUDA_MPS_PIPE_DIRECTORY": str(tmp_path)}, proc)
    assert mps == Mps(str(tmp_path), is_there=True)
