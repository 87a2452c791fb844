"""``batchyard predict``: one request from the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from batchyard.cli.connecting import connected, endpoint_option
from batchyard.cli.json_tensors import from_json, to_json
from batchyard.wire.control import EXIT_CONFIGURATION
from batchyard.wire.signatures import DEFAULT_SIGNATURE


@click.command()
@click.argument("model")
@click.argument("inputs", metavar="JSON|@FILE|-")
@click.option("--signature", default=DEFAULT_SIGNATURE, show_default=True)
@click.option("--version", type=int, help="The model's version; default: the one that is served.")
@click.option("--label", help="The version's label instead.")
@click.option("--timeout", type=float, help="Deadline in seconds.")
@click.option("--request-id", help="Names the request in the server's logs.")
@endpoint_option
def command(
    model: str,
    inputs: str,
    signature: str,
    version: int | None,
    label: str | None,
    timeout: float | None,
    request_id: str | None,
    endpoints: tuple[str, ...],
) -> None:
    """Run one request on MODEL and print its outputs as JSON.

    The inputs are a JSON object of arrays by input name, or one array for a model with one
    input; @FILE reads them from a file, - from standard input. Bytes are {"b64": "..."}.
    """
    value = _parse(inputs)
    with connected(endpoints) as client:
        outputs = client.predict(
            model,
            value,
            signature=signature,
            version=version,
            label=label,
            timeout=timeout,
            request_id=request_id,
        )
        click.echo(json.dumps({name: to_json(array) for name, array in outputs.items()}))


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError as error:
        print(f"batchyard: the inputs' file {path}: {error.strerror}", file=sys.stderr)
        sys.exit(EXIT_CONFIGURATION)


def _parse(text: str) -> Any:
    try:
        if text == "-":
            text = sys.stdin.read()
        elif text.startswith("@"):
            text = _read(text[1:])
        value = json.loads(text)
        if isinstance(value, dict) and set(value) != {"b64"}:
            return {name: from_json(item) for name, item in value.items()}
        return from_json(value)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        print(f"batchyard: the inputs are no JSON: {error}", file=sys.stderr)
        sys.exit(EXIT_CONFIGURATION)
