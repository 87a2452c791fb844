"""Which version of a model a path stands for."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchyard.pool.config_models import Model
from batchyard.pool.versions import Version, choose, find_versions, settled
from batchyard.wire.errors import ConfigurationError


def find(path: Path | str) -> dict[int, Path]:
    found = find_versions(Model(name="m", path=str(path)))
    return {number: Path(version.path) for number, version in found.items()}


def saved_model(folder: Path, file: str = "saved_model.pb") -> Path:
    folder.mkdir(parents=True)
    (folder / file).touch()
    return folder


def refusal(path: Path) -> str:
    with pytest.raises(ConfigurationError) as caught:
        find(path)
    return str(caught.value)


@pytest.mark.parametrize("file", ["saved_model.pb", "saved_model.pbtxt"])
def test_savedmodel_in_no_numeric_folder_is_version_1(tmp_path: Path, file: str) -> None:
    folder = saved_model(tmp_path / "m", file)
    assert find(folder) == {1: folder}


@pytest.mark.parametrize(("name", "version"), [("7", 7), ("00000123", 123)])
def test_savedmodel_in_a_numeric_folder_has_its_number(
    tmp_path: Path, name: str, version: int
) -> None:
    folder = saved_model(tmp_path / name)
    assert find(folder) == {version: folder}


def test_version_0_is_a_version(tmp_path: Path) -> None:
    folder = saved_model(tmp_path / "m" / "0")
    assert find(folder.parent) == {0: folder}
    assert find(folder) == {0: folder}


def test_versions_are_numbers_not_names(tmp_path: Path) -> None:
    for name in ("9", "10", "0008"):
        saved_model(tmp_path / name)
    assert find(tmp_path) == {n: tmp_path / name for n, name in [(8, "0008"), (9, "9"), (10, "10")]}


def test_what_is_no_version_is_passed_over(tmp_path: Path) -> None:
    folder = saved_model(tmp_path / "3")
    for name in ("latest", "-4", "4.5", "1e3", "٤"):
        saved_model(tmp_path / name)
    (tmp_path / "12").touch()
    assert find(tmp_path) == {3: folder}


def test_relative_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved_model(tmp_path / "m" / "2")
    monkeypatch.chdir(tmp_path)
    assert find("m") == {2: folder}


def test_path_that_is_no_folder(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none") == f"model 'm': {tmp_path / 'none'} is no folder"
    file = tmp_path / "saved_model.pb"
    file.touch()
    assert refusal(file).endswith("is no folder")


def test_python_function_without_its_runtime_is_told_of_it(tmp_path: Path) -> None:
    source = tmp_path / "f.py"
    source.touch()
    said = refusal(tmp_path / "f.py:double")
    assert said.endswith('f.py:double is no folder; for a Python function add runtime = "python"')
    said = refusal(source)
    assert said.endswith(f'; a Python function is {source}:FUNCTION, with runtime = "python"')


def test_folder_without_versions(tmp_path: Path) -> None:
    (tmp_path / "latest").mkdir()
    assert "holds neither saved_model.pb nor numeric version folders" in refusal(tmp_path)


def test_version_that_is_being_copied_is_not_there_yet(tmp_path: Path) -> None:
    folder = saved_model(tmp_path / "1")
    (tmp_path / "2" / "variables").mkdir(parents=True)
    assert find(tmp_path) == {1: folder}
    (tmp_path / "2" / "saved_model.pb").touch()
    assert set(find(tmp_path)) == {1, 2}


def test_folder_of_versions_that_are_all_being_copied(tmp_path: Path) -> None:
    (tmp_path / "2").mkdir()
    assert refusal(tmp_path) == (
        f"model 'm': {tmp_path / '2'} holds no saved_model.pb; is it still being copied?"
    )


def test_callable_is_version_1(tmp_path: Path) -> None:
    file = tmp_path / "f.py"
    file.touch()
    for path in ("module:function", f"{file}:function"):
        found = find_versions(Model(name="m", path=path, runtime="python"))
        assert {number: version.path for number, version in found.items()} == {1: path}
    file.unlink()
    with pytest.raises(ConfigurationError, match="is no file"):
        find_versions(Model(name="m", path=f"{file}:function", runtime="python"))


def test_fingerprint_changes_with_the_files(tmp_path: Path) -> None:
    folder = saved_model(tmp_path / "1")

    def fingerprint() -> int:
        return find_versions(Model(name="m", path=str(tmp_path)))[1].fingerprint

    seen = [fingerprint(), fingerprint()]
    assert seen[0] == seen[1]
    (folder / "variables").mkdir()
    (folder / "variables" / "a").write_text("a")
    seen.append(fingerprint())
    (folder / "variables" / "a").write_text("ab")
    seen.append(fingerprint())
    (folder / "variables" / "a").rename(folder / "variables" / "b")
    seen.append(fingerprint())
    assert len(set(seen)) == 4


@pytest.mark.parametrize(
    ("policy", "chosen"),
    [
        ("latest", [9]),
        ("all", [1, 3, 9]),
        ({"latest": 2}, [3, 9]),
        ({"latest": 7}, [1, 3, 9]),
        ({"specific": [9, 1, 4]}, [1, 9]),
        ({"specific": [4]}, []),
    ],
)
def test_policies(policy: str | dict[str, int | list[int]], chosen: list[int]) -> None:
    assert choose(policy, [3, 9, 1]) == chosen
    assert choose(policy, []) == []


def test_version_counts_once_its_files_stay_the_same() -> None:
    old, new, newer = (Version("/m/1", number) for number in range(3))
    assert settled({}, {"m": {1: old}}, {}) == {"m": {}}
    assert settled({"m": {1: old}}, {"m": {1: old}}, {"m": {}}) == {"m": {1: old}}
    # What was there stays what it was while its files change.
    assert settled({"m": {1: new}}, {"m": {1: newer}}, {"m": {1: old}}) == {"m": {1: old}}
    assert settled({"m": {1: old}}, {"m": {}}, {"m": {1: old}}) == {"m": {}}
