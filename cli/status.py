"""``batchyard status``: how a running server fares."""

from __future__ import annotations

import json
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from batchyard.cli.connecting import connected, endpoint_option

_WIDE = 10_000
# Keys of what a server says, and what they are called here.
_WORKER_COLUMNS = {
    "id": "id",
    "pid": "process",
    "device": "device",
    "state": "state",
    "restarts": "restarts",
    "batches": "batches",
}
_MODEL_COLUMNS = {
    "name": "model",
    "version": "version",
    "is_current": "current",
    "state": "state",
    "requests": "requests",
    "batches": "batches",
    "queue_rows": "rows waiting",
}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print what client.stats() returns.")
@endpoint_option
def command(as_json: bool, endpoints: tuple[str, ...]) -> None:
    """Show a running server's broker, workers, models and arena.

    Exits with 1 when no server answers.
    """
    with connected(endpoints) as client:
        stats = client.stats()
    if as_json:
        click.echo(json.dumps(stats))
        return
    console = Console()
    if not console.is_terminal:
        # Programs and files have no edge at which a name would have to be cut.
        console.width = _WIDE
    broker, arena = stats["broker"], stats["arena"]
    console.print(
        f"broker pid {broker['pid']}, up {broker['uptime_s']:.0f} s; arena "
        f"{arena['used_bytes'] / 2**20:.1f} of {arena['bytes'] / 2**20:.0f} MiB in use"
    )
    console.print(_table("workers", stats["workers"], _WORKER_COLUMNS))
    console.print(_table("models", stats["models"], _MODEL_COLUMNS))
    for model in stats["models"]:
        if model["error"]:
            console.print(f"{model['name']} version {model['version']}: {model['error']}")


def _table(title: str, rows: list[dict[str, Any]], columns: dict[str, str]) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in columns.values():
        # Where there is no room, text goes on in the next line: nothing is cut.
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row[key]) for key in columns))
    return table


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else ""
    return escape(str(value))
