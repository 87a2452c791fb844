"""``batchyard keys``: key pairs, and the list of clients that a server lets in."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from batchyard.cli import public_folders
from batchyard.wire.control import EXIT_CONFIGURATION
from batchyard.wire.errors import ConfigurationError
from batchyard.wire.keys import (
    PUBLIC_SUFFIX,
    SECRET_SUFFIX,
    fingerprint,
    read_folder,
    read_key_pair,
    read_public_key,
)

# Beside the pairs: the public keys of those who may connect, for curve_clients.
CLIENTS_FOLDER = "clients"
# It becomes the name of a file, and stands in logs.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


def default_folder() -> Path:
    """Where this user has keys: root for the machine, others for themselves."""
    if os.geteuid() == 0:
        return Path("/etc/batchyard/keys")
    config = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(config) / "batchyard" / "keys"


def _into_context(context: click.Context, option: click.Parameter, folder: Path | None) -> None:
    if folder is not None:
        context.obj = folder


# Before the subcommand or behind it.
_dir_option = click.option(
    "--dir",
    type=click.Path(file_okay=False, path_type=Path),
    expose_value=False,
    callback=_into_context,
    help="Where the keys are.  [default: /etc/batchyard/keys for root, ~/.config/batchyard/keys "
    "for others]",
)


@click.group()
@_dir_option
@click.pass_context
def command(context: click.Context) -> None:
    """Make keys, and say who may connect to a server.

    A server and each client have a pair: NAME.key_secret, which nobody else may read, and
    NAME.key, the public key, for the other side. The public keys of the clients that a server lets
    in are the files of a folder, curve_clients in its configuration: DIR/clients. docs/security.md
    goes through it step by step.
    """
    context.obj = context.obj or default_folder()


@command.command()
@click.argument("name")
@_dir_option
@click.pass_obj
def new(folder: Path, name: str) -> None:
    """Make a pair of keys: NAME.key_secret and NAME.key."""
    with _told():
        public, secret = make_pair(folder, name)
        click.echo(f"secret key   {secret}: keep it here")
        click.echo(f"public key   {public}: give it to the other side")
        click.echo(f"fingerprint  {fingerprint(read_public_key(public))}")


@command.command("list")
@_dir_option
@click.pass_obj
def list_(folder: Path) -> None:
    """List the pairs, and the clients that are allowed."""
    with _told():
        pairs, wrong = read_folder(folder)
        clients, more_wrong = ({}, []) if not _clients(folder).is_dir() else _read_clients(folder)
        if not (pairs or clients or wrong or more_wrong):
            click.echo(f"no keys in {folder}; batchyard keys new NAME makes a pair")
            return
        table = Table()
        for column in ("name", "fingerprint", "what"):
            table.add_column(column)
        for key, name in pairs.items():
            has_secret = (folder / f"{name}{SECRET_SUFFIX}").exists()
            table.add_row(name, fingerprint(key), "pair" if has_secret else "public key")
        for key, name in clients.items():
            table.add_row(name, fingerprint(key), "allowed client")
        Console().print(table)
        for complaint in [*wrong, *more_wrong]:
            click.echo(f"batchyard: {complaint}", err=True)


@command.command()
@click.argument("key", metavar="FILE|NAME")
@click.option("--as", "name", help="What the client is called; default: the file's name.")
@_dir_option
@click.pass_obj
def allow(folder: Path, key: str, name: str | None) -> None:
    """Let a client connect: FILE is its public key, or NAME a pair of this folder.

    A server that runs learns it by SIGHUP (systemctl reload batchyard).
    """
    with _told():
        path = Path(key) if os.path.isfile(key) else folder / f"{key}{PUBLIC_SUFFIX}"
        public = read_public_key(path)
        name = _checked(name or path.name.removesuffix(PUBLIC_SUFFIX))
        known, _ = _read_clients(folder) if _clients(folder).is_dir() else ({}, [])
        if public in known:
            raise ConfigurationError(f"this key is allowed already, as {known[public]!r}")
        _make_folder(_clients(folder))
        _install(path.read_bytes(), _clients(folder) / f"{name}{PUBLIC_SUFFIX}", 0o644)
        click.echo(f"allowed {name}, fingerprint {fingerprint(public)}; {_RELOAD}")


@command.command()
@click.argument("name")
@_dir_option
@click.pass_obj
def revoke(folder: Path, name: str) -> None:
    """Let a client connect no more. Its connections are refused when the server has reloaded."""
    with _told():
        path = _clients(folder) / f"{_checked(name)}{PUBLIC_SUFFIX}"
        try:
            path.unlink()
        except FileNotFoundError:
            raise ConfigurationError(f"no client {name!r} is allowed in {path.parent}") from None
        click.echo(f"revoked {name}; {_RELOAD}")


@command.command()
@click.argument("keys", metavar="FILE|NAME...", nargs=-1, required=True)
@_dir_option
@click.pass_obj
def show(folder: Path, keys: tuple[str, ...]) -> None:
    """Show public keys and their fingerprints; never a secret."""
    with _told():
        for key in keys:
            path = Path(key) if os.path.isfile(key) else folder / f"{key}{PUBLIC_SUFFIX}"
            if path.name.endswith(SECRET_SUFFIX):
                public = read_key_pair(path).public
            else:
                public = read_public_key(path)
            click.echo(f"{path}  {public.decode()}  fingerprint {fingerprint(public)}")


_RELOAD = "a server that runs learns it by SIGHUP (systemctl reload batchyard)"


def make_pair(folder: Path, name: str) -> tuple[Path, Path]:
    """Makes a pair in a folder; the paths of the public and the secret key.

    Raises ConfigurationError where there is one already.
    """
    from zmq.auth import create_certificates

    _checked(name)
    _make_folder(folder)
    public, secret = (folder / f"{name}{suffix}" for suffix in (PUBLIC_SUFFIX, SECRET_SUFFIX))
    for path in (public, secret):
        if path.exists():
            raise ConfigurationError(f"{path} is there already; keys are never overwritten")
    # The library writes files that all may read: into a folder that only this user can look into.
    with _failing_with(folder), tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as private:
        made = [Path(path).read_bytes() for path in create_certificates(private, name)]
    # The secret first: a public key without one would be of no use.
    _install(made[1], secret, 0o600)
    _install(made[0], public, 0o644)
    return public, secret


def _install(content: bytes, path: Path, mode: int) -> None:
    """Puts a file there whole or not at all. Raises ConfigurationError when there is one."""
    with _failing_with(path):
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                os.fchmod(file.fileno(), mode)
                file.flush()
                os.fsync(file.fileno())
            # Unlike a rename, a link replaces nothing.
            os.link(temporary, path)
        finally:
            os.unlink(temporary)


def _make_folder(folder: Path) -> None:
    with _failing_with(folder):
        if os.geteuid() != 0:
            # What a person has around the keys is the person's own.
            folder.parent.mkdir(parents=True, exist_ok=True)
        if not folder.is_dir():
            public_folders.make(folder)


def _clients(folder: Path) -> Path:
    return folder / CLIENTS_FOLDER


def _read_clients(folder: Path) -> tuple[dict[bytes, str], list[str]]:
    return read_folder(_clients(folder))


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"{name!r} is no name for a key: up to 64 letters, digits and . _ @ -, a letter or "
            "digit first"
        )
    return name


@contextlib.contextmanager
def _failing_with(path: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError:
        raise ConfigurationError(f"{path} is there already; keys are never overwritten") from None
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from None


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Errors end the process with a line that says what is wrong."""
    try:
        yield
    except ConfigurationError as error:
        for line in str(error).splitlines():
            print(f"batchyard: {line}", file=sys.stderr)
        sys.exit(EXIT_CONFIGURATION)
