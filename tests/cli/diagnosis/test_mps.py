"""What the doctor says of NVIDIA's Multi-Process Service."""

from __future__ import annotations

import pytest

from batchyard.cli.diagnosis.mps import check_mps
from batchyard.pool.mps import Daemon, Mps

HERE = "/run/nvidia-mps"
LISTENS = Mps(HERE, is_there=True, wrote=31, daemons=(Daemon(31, 0, HERE),))
NONE = Mps(HERE, is_there=False)


@pytest.mark.parametrize(
    ("mps", "environ", "level", "says"),
    [
        (LISTENS, {}, "ok", "process 31, /run/nvidia-mps"),
        (LISTENS, {"CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": "0=2G"}, "ok", "MEM_LIMIT=0=2G"),
        (Mps(HERE, True), {}, "ok", "cannot be seen"),
        (Mps(HERE, True, 31, (Daemon(31, 990),)), {}, "ok", "process 31"),
        (Mps(HERE, True, 31, (Daemon(31, 1000),)), {}, "warning", "user 1000, workers as 990"),
        (Mps(HERE, True, 31, (Daemon(32, 0),)), {}, "warning", "is gone; process 32 runs"),
        (Mps(HERE, False, None, (Daemon(31, 0, "/tmp/a"),)), {}, "warning", "in /tmp/a, workers"),
        (Mps(HERE, False, None, (Daemon(31, 0),)), {}, "warning", "31) listens, workers look in"),
        (NONE, {"CUDA_MPS_PIPE_DIRECTORY": HERE}, "warning", "no control daemon listens in /run"),
        (NONE, {"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "30"}, "warning", "PERCENTAGE set, but no"),
    ],
)
def test_one_finding(mps: Mps, environ: dict[str, str], level: str, says: str) -> None:
    (finding,) = check_mps(mps, environ, uid=990)
    assert (finding.level, bool(finding.remedy)) == (level, level != "ok")
    assert says in finding.found


def test_who_does_not_use_it_hears_nothing_of_it() -> None:
    assert check_mps(NONE, {"CUDA_VISIBLE_DEVICES": "0"}, uid=990) == []
