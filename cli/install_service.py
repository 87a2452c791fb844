"""``batchyard install-service``: makes this environment's server a service of systemd."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import click

from batchyard.cli import public_folders, service_files
from batchyard.cli.service_files import SYSUSERS, TEMPLATE, UNIT
from batchyard.pool.config import read_toml, validate
from batchyard.wire.control import EXIT_CONFIGURATION, EXIT_FAILURE
from batchyard.wire.errors import ConfigurationError

_UNITS = Path("etc/systemd/system")
_SYSUSERS = Path("etc/sysusers.d/batchyard.conf")
_CONFIGURATION = Path("etc/batchyard")
_ADVICE = (
    "warning: the service will not start; install Batchyard where everybody may read it: "
    "python3 -m venv /opt/batchyard && /opt/batchyard/bin/pip install WHEEL[cpu] (of `make dist`)"
)


@click.command()
@click.argument("name", required=False)
@click.option(
    "--config",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A configuration to install; without it a sample is. One that is there already stays.",
)
@click.option("--user", help="Run as this user, who exists, and not as one made for the service.")
@click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False),
    help="Install below this folder, an image's root, and start nothing.",
)
@click.option("--start", is_flag=True, help="Start it, also at boot; restart it if it runs.")
@click.option("--dry-run", is_flag=True, help="Only print what would be written.")
def command(
    name: str | None,
    config: Path | None,
    user: str | None,
    root: Path | None,
    start: bool,
    dry_run: bool,
) -> None:
    """Install a systemd service that runs this environment's Batchyard.

    Without NAME the service is batchyard, with the configuration /etc/batchyard/batchyard.toml;
    with NAME it is batchyard@NAME, one of several on a machine, with /etc/batchyard/NAME.toml.
    Running it again, also from another environment, brings the units up to date.
    """
    if name is not None and not service_files.is_name(name):
        _refuse(f"NAME {name!r} must be at most 21 of a-z, 0-9, - and _, a letter first")
    if start and root is not None:
        _refuse("--start starts the service of this machine, so it cannot go with --root")
    if root is not None:
        if not root.is_dir():
            _refuse(f"--root {root}: there is no such folder")
        # systemd-sysusers takes no other.
        root = root.absolute()
    if config is not None:
        _check_configuration(config)
    words = service_files.command()
    try:
        reader = service_files.reader_of(user)
    except KeyError:
        _refuse(f"--user {user}: there is no such user")
    files = {
        _SYSUSERS: service_files.shipped(SYSUSERS),
        **{_UNITS / unit: service_files.unit(unit, words, user) for unit in (UNIT, TEMPLATE)},
    }
    obstacles = service_files.obstacles(words, reader)
    for obstacle in obstacles:
        click.echo(f"warning: {obstacle}", err=True)
    if obstacles:
        click.echo(_ADVICE, err=True)
    if dry_run:
        for path, text in files.items():
            click.echo(f"# {(root or Path('/')) / path}\n{text}")
        return
    _check_that_it_can(root)
    _verify(files)
    service = f"batchyard@{name}" if name else "batchyard"
    configuration = _CONFIGURATION / f"{name or 'batchyard'}.toml"
    target = root or Path("/")
    changed = [_write(target / path, text) for path, text in files.items()]
    is_sample = _install_configuration(target / configuration, config, service, name)
    _run("systemd-sysusers", *_at(root), str(target / _SYSUSERS))
    if root is None:
        _run("systemctl", "daemon-reload")
    if start and not is_sample:
        _start(service, is_changed=any(changed))
        return
    if start:
        click.echo(f"not started: /{configuration} names no model yet", err=True)
    _say_what_is_next(service, Path("/") / configuration, words, root, is_sample)


def _check_that_it_can(root: Path | None) -> None:
    if shutil.which("systemd-analyze") is None or shutil.which("systemd-sysusers") is None:
        _refuse("systemd is not installed here; docs/operations.md has other ways to run a server")
    if root is not None:
        return
    if not Path("/run/systemd/system").is_dir():
        _refuse(
            "systemd does not run here; give --root DIR to install into an image, or --dry-run to "
            "see the files"
        )
    if os.geteuid() != 0:
        _refuse("must be run as root, to write below /etc; --dry-run shows what it would write")


def _check_configuration(config: Path) -> None:
    """Exits when the server would refuse it on any machine; `check` looks at this one."""
    try:
        validate(read_toml(config), str(config))
    except ConfigurationError as error:
        _refuse(str(error))


def _verify(files: Mapping[Path, str]) -> None:
    """Exits when systemd does not take the units: before any of them is in place."""
    with tempfile.TemporaryDirectory() as folder:
        units = []
        for path, text in files.items():
            if path.parent == _UNITS:
                units.append(Path(folder, path.name))
                units[-1].write_text(text)
        ended = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", *map(str, units)],
            capture_output=True,
            text=True,
            check=False,
        )
    # It looks at what the units name as well, which is not ours to complain of.
    complaints = [line for line in ended.stderr.splitlines() if "batchyard" in line]
    if complaints:
        _refuse("systemd-analyze verify refuses the units:\n" + "\n".join(complaints))


def _write(path: Path, text: str) -> bool:
    """Whether the file had to be written; one that was changed by hand is kept beside it."""
    old = path.read_text() if path.exists() else None
    if old == text:
        click.echo(f"unchanged  {path}")
        return False
    public_folders.make(path.parent)
    if old is not None:
        path.with_name(f"{path.name}.old").write_text(old)
        click.echo(f"replaced   {path} (it was {path.name}.old; changes belong to systemctl edit)")
    else:
        click.echo(f"written    {path}")
    _put(path, text)
    return True


def _put(path: Path, text: str) -> None:
    """All of it or nothing, whatever happens meanwhile."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text)
    new.chmod(0o644)
    new.replace(path)


def _install_configuration(path: Path, config: Path | None, service: str, name: str | None) -> bool:
    """Whether what is there now is the sample, in which no model is."""
    sample = service_files.shipped("batchyard.toml")
    if name is not None:
        # The port before that is the first server's.
        sample = sample.replace(
            '# bind = ["tcp://127.0.0.1:8600", "ipc:///run/batchyard/broker"]',
            'bind = ["tcp://127.0.0.1:8601", "ipc:///run/batchyard/broker"]',
        )
        sample = sample.replace("The default: this machine only", "This machine only")
        for first, second in ((8501, 8503), (8500, 8502), (9090, 9091)):
            sample = sample.replace(f"# port = {first}", f"# port = {second}")
        sample = sample.replace("/run/batchyard/", f"/run/batchyard-{name}/")
        sample = sample.replace("batchyard.key_secret", f"batchyard-{name}.key_secret")
        sample = sample.replace("batchyard.toml", f"{name}.toml")
        sample = sample.replace("batchyard.service", f"{service}.service")
        sample = sample.replace("reload batchyard ", f"reload {service} ")
        sample = sample.replace("restart batchyard ", f"restart {service} ")
    wanted = sample if config is None else config.read_text()
    if path.exists():
        old = path.read_text()
        note = " (--config differs)" if config is not None and old != wanted else ""
        click.echo(f"kept       {path}{note}")
        return old == sample
    public_folders.make(path.parent)
    _put(path, wanted)
    click.echo(f"written    {path}{' (a sample)' if config is None else ''}")
    return config is None


def _start(service: str, *, is_changed: bool) -> None:
    _run("systemctl", "enable", "--quiet", service)
    runs = subprocess.run(["systemctl", "is-active", "--quiet", service], check=False)
    verb = "restart" if is_changed and runs.returncode == 0 else "start"
    ended = subprocess.run(["systemctl", verb, service], check=False)
    subprocess.run(["systemctl", "status", "--no-pager", "--lines=5", service], check=False)
    if ended.returncode:
        _fail(f"{service} did not start; journalctl -u {service} says why")


def _say_what_is_next(
    service: str, configuration: Path, words: Sequence[str], root: Path | None, is_sample: bool
) -> None:
    click.echo("Next:")
    what = "[[models]] with name and path"
    if root is not None:
        if is_sample:
            click.echo(f"  put your models into {root / configuration.relative_to('/')}: {what}")
        click.echo(f"  systemctl --root={root} enable {service}")
        click.echo("and in the image, when it runs:")
        click.echo(f"  {' '.join(words)} check {configuration}")
    else:
        if is_sample:
            click.echo(f"  put your models into {configuration}: {what}")
        click.echo(f"  {' '.join(words)} check {configuration}")
        click.echo(f"  systemctl enable --now {service}")
    click.echo("  usermod -aG batchyard-clients USER      who may use its socket")
    click.echo(f"  systemctl status {service}; journalctl -fu {service}")


def _at(root: Path | None) -> list[str]:
    return [f"--root={root}"] if root else []


def _run(*words: str) -> None:
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    if ended.returncode:
        _fail(f"{' '.join(words)} failed: {ended.stderr.strip()}")


def _refuse(message: str) -> NoReturn:
    click.echo(f"batchyard: {message}", err=True)
    sys.exit(EXIT_CONFIGURATION)


def _fail(message: str) -> NoReturn:
    click.echo(f"batchyard: {message}", err=True)
    sys.exit(EXIT_FAILURE)
