"""Who may talk to the server: the keys and the group that a configuration names, found here."""

from __future__ import annotations

import contextlib
import grp
import os
from collections.abc import Iterator, Mapping

from batchyard.wire.control import BrokerSettings
from batchyard.wire.errors import ConfigurationError
from batchyard.wire.keys import read_folder, read_key_pair

_CREDENTIALS = "CREDENTIALS_DIRECTORY"
_VARIABLE = f"${{{_CREDENTIALS}}}"
_GROUP_ID_MAX = (1 << 32) - 2


def place(path: str | None, environ: Mapping[str, str]) -> str:
    """The path that is meant; empty when there is none.

    Of variables only systemd's folder of credentials is known, which no configuration can name:
    it is another one for each unit. Where it is not set the path stays as it is.
    """
    folder = environ.get(_CREDENTIALS)
    return path.replace(_VARIABLE, folder) if path and folder else path or ""


def is_hidden(path: str, environ: Mapping[str, str]) -> bool:
    """Whether a path is a credential that this process is not shown.

    systemd (seen with 252) shows them to a service's main process alone: not to what ExecReload=
    runs, such as `batchyard check`, nor to a person who does.
    """
    folder = environ.get(_CREDENTIALS)
    is_credential = _VARIABLE in path or (folder is not None and path.startswith(f"{folder}/"))
    return is_credential and not os.access(path, os.R_OK)


def group_id(group: str | None) -> int | None:
    """The number of a group that is given by name or number. Raises ConfigurationError."""
    if group is None:
        return None
    if group.isascii() and group.isdecimal() and int(group[:11]) <= _GROUP_ID_MAX:
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except (KeyError, ValueError):
        raise ConfigurationError(f"ipc_group: this machine has no group {group!r}") from None


def check_keys(settings: BrokerSettings, environ: Mapping[str, str]) -> None:
    """Reads the keys as the broker will, so that what is wrong is told before anything starts.

    Raises ConfigurationError.
    """
    if not settings.curve_secret_key_file:
        return
    with _named("broker.curve_clients"):
        keys, _ = read_folder(settings.curve_clients)
    if is_hidden(settings.curve_secret_key_file, environ):
        return
    with _named("broker.curve_secret_key_file"):
        server = read_key_pair(settings.curve_secret_key_file)
    if server.public in keys:
        name = keys[server.public]
        raise ConfigurationError(
            f"{settings.curve_clients}/{name}.key is the server's own key: clients need their own"
        )


@contextlib.contextmanager
def _named(key: str) -> Iterator[None]:
    """Says which key of the configuration names what is wrong."""
    try:
        yield
    except ConfigurationError as error:
        raise ConfigurationError(f"{key}: {error}") from None
