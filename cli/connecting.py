"""What the subcommands that talk to a server share."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

import click

from batchyard.clients import Client
from batchyard.wire.control import EXIT_CONFIGURATION, EXIT_FAILURE
from batchyard.wire.errors import BatchyardError, ConfigurationError, Unavailable
from batchyard.wire.keys import SECRET_KEY_FILE_VARIABLE, SERVER_KEY_VARIABLE

F = TypeVar("F", bound=Callable[..., Any])


def endpoint_option(function: F) -> F:
    """Adds ``--endpoint``, and the options for keys."""
    return click.option(
        "--endpoint",
        "endpoints",
        multiple=True,
        help="Where the server listens; default: this machine's. May be given again.",
    )(key_options(function))


def key_options(function: F) -> F:
    """Adds ``--server-key`` and ``--secret-key-file``.

    The SDK takes them from the environment, and so do the processes that a subcommand starts: the
    options only say it there. A secret itself is never an argument, which all users may read.
    """
    for flag, variable, description in (
        (
            "--secret-key-file",
            SECRET_KEY_FILE_VARIABLE,
            "The client's own keys, for a server that asks for them: see `batchyard keys`.",
        ),
        (
            "--server-key",
            SERVER_KEY_VARIABLE,
            "That server's public key: its file, or 40 characters.",
        ),
    ):
        function = click.option(
            flag,
            envvar=variable,
            show_envvar=True,
            help=description,
            expose_value=False,
            callback=partial(_into_environment, variable),
        )(function)
    return function


def _into_environment(
    variable: str, context: click.Context, option: click.Parameter, value: str | None
) -> None:
    if value:
        os.environ[variable] = value


@contextlib.contextmanager
def connected(endpoints: tuple[str, ...], **options: Any) -> Iterator[Client]:
    """A client; errors end the process with a line that says what went wrong."""
    try:
        with Client(list(endpoints) or None, **options) as client:
            yield client
    except ConfigurationError as error:
        print(f"batchyard: {error}", file=sys.stderr)
        sys.exit(EXIT_CONFIGURATION)
    except BatchyardError as error:
        print(f"batchyard: {error}", file=sys.stderr)
        if isinstance(error, Unavailable):
            for name in _unknown_hosts(endpoints):
                print(
                    f"batchyard: there is no host {name}, as far as is known here", file=sys.stderr
                )
        sys.exit(EXIT_FAILURE)


def _unknown_hosts(endpoints: tuple[str, ...]) -> Iterator[str]:
    """Names that do not resolve, of which libzmq says nothing. Asking takes its time: only here,
    where nothing else waits."""
    for endpoint in endpoints:
        scheme, _, rest = endpoint.partition("://")
        host = rest.rpartition(":")[0].strip("[]")
        if scheme == "tcp":
            try:
                socket.getaddrinfo(host, None)
            except (OSError, UnicodeError):
                yield host
