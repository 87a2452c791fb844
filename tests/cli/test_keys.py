"""``batchyard keys``: files that nobody else may read, and no secret anywhere but in them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from batchyard.cli import keys
from batchyard.wire.keys import fingerprint, read_folder, read_key_pair, read_public_key


@pytest.fixture(params=[0o022, 0o000, 0o077])
def _any_umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def run(folder: Path, *arguments: str | Path) -> Result:
    """What the command says; whatever it is, it holds no secret."""
    result = CliRunner().invoke(keys.command, ["--dir", str(folder), *map(str, arguments)])
    for path in folder.rglob("*.key_secret") if folder.is_dir() else []:
        assert read_key_pair(path).secret.decode() not in result.output + result.stderr
    return result


def done(folder: Path, *arguments: str | Path) -> str:
    result = run(folder, *arguments)
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout


def refused(folder: Path, *arguments: str | Path) -> str:
    result = run(folder, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    return result.stderr


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def current_umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def test_the_folder_is_taken_before_and_behind_the_subcommand(tmp_path: Path) -> None:
    result = CliRunner().invoke(keys.command, ["new", "--dir", str(tmp_path / "keys"), "server"])
    assert (result.exit_code, result.stderr) == (0, "")
    for arguments in (["--dir", "FOLDER", "list"], ["list", "--dir", "FOLDER"]):
        words = [word.replace("FOLDER", str(tmp_path / "keys")) for word in arguments]
        assert "server" in CliRunner().invoke(keys.command, words).stdout


def test_list_without_keys_says_so(tmp_path: Path) -> None:
    said = done(tmp_path, "list")
    assert said == f"no keys in {tmp_path}; batchyard keys new NAME makes a pair\n"


@pytest.mark.usefixtures("_any_umask")
def test_new_makes_a_pair_that_is_the_owners(tmp_path: Path) -> None:
    folder = tmp_path / "etc" / "keys"
    said = done(folder, "new", "server")
    pair = read_key_pair(folder / "server.key_secret")
    assert read_public_key(folder / "server.key") == pair.public
    assert fingerprint(pair.public) in said
    modes = [mode(folder / name) for name in ("server.key_secret", "server.key", "")]
    assert modes == [0o600, 0o644, 0o755]
    assert sorted(os.listdir(folder)) == ["server.key", "server.key_secret"]


@pytest.mark.usefixtures("_any_umask")
@pytest.mark.parametrize(("uid", "may_pass"), [(0, True), (1000, False)])
def test_what_root_makes_leads_to_the_keys_and_a_persons_own_folders_are_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uid: int, may_pass: bool
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    keys_folder = tmp_path / "etc/batchyard/keys"
    done(keys_folder, "new", "a")
    done(keys_folder, "allow", "a")
    assert mode(keys_folder) == mode(keys_folder / "clients") == 0o755
    own = 0o777 & ~current_umask()
    for above in (tmp_path / "etc", tmp_path / "etc/batchyard"):
        assert mode(above) == (0o755 if may_pass else own)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    done(tmp_path, "new", "a")
    pair = read_key_pair(tmp_path / "a.key_secret")
    assert "never overwritten" in refused(tmp_path, "new", "a")
    (tmp_path / "a.key").unlink()
    assert "never overwritten" in refused(tmp_path, "new", "a")
    assert read_key_pair(tmp_path / "a.key_secret") == pair
    assert os.listdir(tmp_path) == ["a.key_secret"]


@pytest.mark.parametrize("name", ["", "../a", "a/b", ".a", "a b", "a\n", "-a", "x" * 65, "ä"])
def test_names_are_names_of_files(tmp_path: Path, name: str) -> None:
    for command in ("new", "revoke"):
        assert "is no name" in refused(tmp_path, command, "--", name)
    assert not list(tmp_path.iterdir())


def test_allow_list_show_and_revoke(tmp_path: Path) -> None:
    server, laptop = tmp_path / "server", tmp_path / "laptop"
    for folder, name in ((server, "server"), (server, "alice"), (laptop, "bob")):
        done(folder, "new", name)
    done(server, "allow", "alice")
    done(server, "allow", laptop / "bob.key", "--as", "bob-laptop")
    allowed, complaints = read_folder(server / "clients")
    assert sorted(allowed.values()) == ["alice", "bob-laptop"]
    assert complaints == []
    assert not list((server / "clients").glob("*secret*"))
    listed = done(server, "list")
    for path in (server / "server.key", server / "alice.key", laptop / "bob.key"):
        assert fingerprint(read_public_key(path)) in listed
        assert fingerprint(read_public_key(path)) in done(server, "show", path)
    assert done(server, "show", server / "alice.key_secret")
    done(server, "revoke", "bob-laptop")
    assert sorted(read_folder(server / "clients")[0].values()) == ["alice"]
    assert "no client 'bob-laptop' is allowed" in refused(server, "revoke", "bob-laptop")


def test_what_may_not_be_allowed(tmp_path: Path) -> None:
    for name in ("alice", "bob"):
        done(tmp_path, "new", name)
    done(tmp_path, "allow", "alice")
    assert "has a secret key" in refused(tmp_path, "allow", tmp_path / "bob.key_secret")
    assert "allowed already, as 'alice'" in refused(tmp_path, "allow", "alice", "--as", "eve")
    assert "never overwritten" in refused(tmp_path, "allow", "bob", "--as", "alice")
    assert "No such file" in refused(tmp_path, "allow", "nobody")
    (tmp_path / "junk").write_text("junk")
    assert "no file of a key" in refused(tmp_path, "allow", tmp_path / "junk")
    assert os.listdir(tmp_path / "clients") == ["alice.key"]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "nowhere", "list")


@pytest.mark.parametrize(
    ("uid", "environ", "expected"),
    [
        (0, {}, "/etc/batchyard/keys"),
        (1000, {"HOME": "/home/a"}, "/home/a/.config/batchyard/keys"),
        (1000, {"HOME": "/home/a", "XDG_CONFIG_HOME": "/c"}, "/c/batchyard/keys"),
    ],
)
def test_default_folder(
    monkeypatch: pytest.MonkeyPatch, uid: int, environ: dict[str, str], expected: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert keys.default_folder() == Path(expected)
