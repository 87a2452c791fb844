"""The folders of ipc sockets that a server makes."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchyard.pool.ipc_paths import claimed, private_endpoint
from batchyard.wire.access import Access
from batchyard.wire.errors import ConfigurationError


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


def test_no_folders_are_made_for_a_path_that_is_mistyped(tmp_path: Path) -> None:
    nowhere = f"ipc://{tmp_path}/no/such/broker"
    with (
        pytest.raises(ConfigurationError, match=f"there is no folder {tmp_path}/no, in which such"),
        claimed([nowhere], Access(0o600)),
    ):
        pass
    assert not list(tmp_path.iterdir())


@contextlib.contextmanager
def private(temporary: Path) -> Iterator[Path]:
    """A server's private folder, claimed, and so old that its server has long started."""
    with private_endpoint() as endpoint, claimed([endpoint], Access(0o600)):
        folder = Path(endpoint.removeprefix("ipc://")).parent
        assert folder.parent == temporary
        os.utime(folder / "broker.lock", (0, 0))
        yield folder


def test_the_private_folder_of_a_server_that_was_killed_goes_when_the_next_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with private(tmp_path) as alive:
        # Nobody holds the copy's lock: as if it had been killed.
        for name, age_s in (("batchyard-killed", 3600), ("batchyard-new", 0), ("other", 3600)):
            copy = tmp_path / name
            shutil.copytree(alive, copy)
            at = time.time() - age_s
            os.utime(copy / "broker.lock", (at, at))
        (tmp_path / "batchyard-mine").mkdir()
        (tmp_path / "batchyard-link").symlink_to(tmp_path / "other")
        expected = {"batchyard-new", "other", "batchyard-mine", "batchyard-link", alive.name}
        with private(tmp_path) as another:
            assert set(os.listdir(tmp_path)) == {*expected, another.name}
    assert set(os.listdir(tmp_path)) == expected - {alive.name}
    assert os.listdir(tmp_path / "other") == ["broker.lock"]
