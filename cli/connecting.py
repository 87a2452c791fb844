"""What the subcommands that talk to a server share."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import click

from batchyard.clients import Client
from batchyard.wire.control import EXIT_CONFIGURATION, EXIT_FAILURE
from batchyard.wire.errors import BatchyardError, ConfigurationError

F = TypeVar("F", bound=Callable[..., Any])


def endpoint_option(function: F) -> F:
    """Adds ``--endpoint``."""
    return click.option(
        "--endpoint",
        "endpoints",
        multiple=True,
        help="Where the server listens; default: this machine's. May be given again.",
    )(function)


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
        sys.exit(EXIT_FAILURE)
