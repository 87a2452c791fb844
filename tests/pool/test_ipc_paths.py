"""The folders of ipc sockets that a server makes."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from batchyard.pool.ipc_paths import claimed
from batchyard.wire.access import Access


@pytest.mark.parametrize(
    ("ipc_mode", "expected"),
    [(0o600, 0o700), (0o660, 0o710), (0o666, 0o711), (0o606, 0o701), (0o640, 0o700)],
)
@pytest.mark.parametrize("gid", [None, os.getgid()])
def test_who_may_connect_may_pass_through_the_folder_and_not_look_into_it(
    tmp_path: Path, ipc_mode: int, expected: int, gid: int | None
) -> None:
    folder = tmp_path / "made"
    with claimed([f"ipc://{folder}/broker"], Access(ipc_mode, gid)):
        assert stat.S_IMODE(folder.stat().st_mode) == expected


def test_a_folder_that_was_there_stays_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "there"
    folder.mkdir(mode=0o750)
    with claimed([f"ipc://{folder}/broker"], Access(0o666)):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o750
