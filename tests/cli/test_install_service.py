"""``batchyard install-service``, as far as it goes without systemd; see system/test_service.py."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from batchyard.cli import service_files
from batchyard.cli.install_service import command
from batchyard.pool.config import validate

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="needs systemd-analyze (Debian: systemd)"
)

MINE = """\
[broker]
curve_secret_key_file = "${CREDENTIALS_DIRECTORY}/batchyard.key_secret"
curve_clients = "/etc/batchyard/keys/clients"
[[models]]
name = "m"
path = "/srv/models/m"
"""


def install(*arguments: str) -> Result:
    return CliRunner().invoke(command, list(arguments))


def directives(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_the_template_is_the_unit_but_for_its_names() -> None:
    unit = directives(service_files.shipped("batchyard.service"))
    template = directives(service_files.shipped("batchyard@.service"))
    assert len(unit) == len(template)
    for ours, theirs in zip(unit, template, strict=True):
        if ours != theirs:
            assert "%i" in theirs
            assert ours == (
                theirs.replace(" %i", "").replace("-%i", "").replace("%i.toml", "batchyard.toml")
            )


def test_the_sample_is_valid_with_all_of_it_uncommented() -> None:
    sample = service_files.shipped("batchyard.toml")
    tomllib.loads(sample)
    uncommented = re.sub(r"^# (\[|[a-z_]+ = )", r"\1", sample, flags=re.MULTILINE)
    tables = tomllib.loads(uncommented)
    assert set(tables) == {"models", "broker", "pool", "rest", "grpc", "metrics"}
    # Group and keys are of the machine that it is for.
    for key in ("curve_secret_key_file", "curve_clients"):
        tables["broker"].pop(key)
    validate(tables, "sample")


@needs_systemd
def test_it_writes_an_image_and_changes_nothing_the_second_time(tmp_path: Path) -> None:
    result = install("--root", str(tmp_path))
    assert result.exit_code == 0, result.output
    units = tmp_path / "etc/systemd/system"
    assert f"ExecStart={service_files.command()[0]} " in (units / "batchyard.service").read_text()
    assert (tmp_path / "etc/batchyard/batchyard.toml").exists()
    assert "batchyard-clients" in (tmp_path / "etc/group").read_text()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert install("--root", str(tmp_path)).output.count("unchanged ") == 3
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


@needs_systemd
def test_the_services_user_gets_at_what_root_installs_with_any_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        assert install("--root", str(tmp_path)).exit_code == 0
    finally:
        os.umask(before)
    reader = service_files.Reader()
    for path in ("etc/systemd/system/batchyard.service", "etc/batchyard/batchyard.toml"):
        file = tmp_path / path
        folders = list(file.relative_to(tmp_path).parents)[:-1]
        assert reader.can_enter(file)
        assert all(reader.can_enter(tmp_path / folder) for folder in folders), folders


@needs_systemd
def test_what_an_operator_wrote_is_kept(tmp_path: Path) -> None:
    configuration = tmp_path / "etc/batchyard/second.toml"
    configuration.parent.mkdir(parents=True)
    configuration.write_text("mine")
    (tmp_path / "other.toml").write_text(MINE)
    unit = tmp_path / "etc/systemd/system/batchyard.service"
    unit.parent.mkdir(parents=True)
    unit.write_text("[Service]\n# by hand\n")
    result = install("second", "--root", str(tmp_path), "--config", str(tmp_path / "other.toml"))
    assert result.exit_code == 0, result.output
    assert configuration.read_text() == "mine"
    assert "(--config differs)" in result.output
    assert unit.with_name("batchyard.service.old").read_text() == "[Service]\n# by hand\n"


@needs_systemd
def test_a_given_configuration_is_installed_and_a_sample_is_for_its_instance(
    tmp_path: Path,
) -> None:
    (tmp_path / "mine.toml").write_text(MINE)
    install("--root", str(tmp_path), "--config", str(tmp_path / "mine.toml"))
    assert (tmp_path / "etc/batchyard/batchyard.toml").read_text() == MINE
    install("second", "--root", str(tmp_path))
    sample = (tmp_path / "etc/batchyard/second.toml").read_text()
    assert "ipc:///run/batchyard-second/broker" in sample
    assert "systemctl reload batchyard@second" in sample
    assert "/etc/batchyard/second.toml" in sample
    # Two servers of one machine cannot have the same port.
    binds = tomllib.loads(sample)["broker"]["bind"]
    assert binds == ["tcp://127.0.0.1:8601", "ipc:///run/batchyard-second/broker"]
    for port in (8503, 8502, 9091):
        assert f"# port = {port}" in sample


@needs_systemd
def test_a_folder_named_from_here_is_an_image_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "image").mkdir()
    monkeypatch.chdir(tmp_path)
    result = install("--root", "image")
    assert result.exit_code == 0, result.output
    steps, _, in_image = result.output.partition("Next:")[2].partition("in the image")
    assert f"{tmp_path}/image/etc/batchyard/batchyard.toml" in steps
    assert f"systemctl --root={tmp_path}/image enable batchyard" in steps
    assert "check /etc/batchyard/batchyard.toml" in in_image
    assert "usermod" in in_image


def test_a_configuration_that_cannot_work_is_not_installed(tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text("[modles]\n")
    (tmp_path / "image").mkdir()
    result = install("--root", str(tmp_path / "image"), "--config", str(broken))
    assert result.exit_code == 2
    assert f"{broken}: modles: there is no such key" in result.output
    assert not list((tmp_path / "image").iterdir())


def test_dry_run_prints_and_writes_nothing(tmp_path: Path) -> None:
    result = install("--dry-run", "--root", str(tmp_path))
    assert result.exit_code == 0
    assert f"# {tmp_path}/etc/systemd/system/batchyard@.service" in result.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["Bad.Name"], "NAME 'Bad.Name' must be"),
        (["x" * 22], "must be at most 21"),
        (["--start", "--root", "/image"], "cannot go with --root"),
        (["--root", "/no/such/image"], "--root /no/such/image: there is no such folder"),
        (["--user", "nobody-of-this-name"], "there is no such user"),
    ],
)
def test_wrong_usage_is_refused(arguments: list[str], says: str) -> None:
    result = install(*arguments, "--dry-run")
    assert result.exit_code == 2
    assert says in result.output


@needs_systemd
def test_it_says_what_it_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if not Path("/run/systemd/system").is_dir():
        result = install()
        assert result.exit_code == 2
        assert "systemd does not run here" in result.output
    monkeypatch.setattr(Path, "is_dir", lambda self: True)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    result = install()
    assert result.exit_code == 2
    assert "must be run as root" in result.output
    monkeypatch.setenv("PATH", str(tmp_path))
    result = install()
    assert result.exit_code == 2
    assert "systemd is not installed here" in result.output


@needs_systemd
def test_units_that_systemd_refuses_are_not_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(service_files, "command", lambda: ["/nowhere/batchyard"])
    monkeypatch.setattr(service_files, "needed", lambda words: [])
    result = install("--root", str(tmp_path))
    assert result.exit_code == 2
    assert "/nowhere/batchyard is not executable" in result.output
    assert not list(tmp_path.iterdir())


def test_another_user_and_another_path_are_what_the_unit_says() -> None:
    text = service_files.unit("batchyard.service", ["/srv/my env/100%/by"], user="alice")
    assert 'ExecStart="/srv/my env/100%%/by" serve /etc/batchyard/batchyard.toml\n' in text
    assert "\nUser=alice\n" in text
    assert "DynamicUser" not in text
    home = service_files.unit("batchyard@.service", ["/home/alice/venv/bin/batchyard"])
    assert "\nProtectHome=read-only\n" in home


def test_what_the_services_user_cannot_read_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    script = private / "batchyard"
    script.touch()
    monkeypatch.setattr(service_files, "needed", lambda words: [Path(words[0])])
    monkeypatch.setattr(service_files, "_TEMPORARY", ())
    (obstacle,) = service_files.obstacles([str(script)], service_files.Reader())
    # pytest's own folder is for one user, too.
    assert "cannot be read by the service's user" in obstacle
    assert not service_files.obstacles([str(script)], service_files.Reader(uid=0))
    monkeypatch.setattr(service_files, "_TEMPORARY", (str(tmp_path),))
    (obstacle,) = service_files.obstacles([str(script)], service_files.Reader(uid=0))
    assert "is hidden from a service" in obstacle


def test_this_environment_is_found() -> None:
    (first, *_) = service_files.command()
    assert Path(first).exists()
    assert Path(sys.executable) in service_files.needed([first])
