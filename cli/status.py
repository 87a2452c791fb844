"""``batchyard status``: how a running server fares."""

from __future__ import annotations

import json
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from batchyard.cli.connecting import connected, endpoint_option


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
    broker, arena = stats["broker"], stats["arena"]
    console.print(
        f"broker pid {broker['pid']}, up {broker['uptime_s']:.0f} s; arena "
        f"{arena['used_bytes'] / 2**20:.1f} of {arena['bytes'] / 2**20:.0f} MiB in use"
    )
    columns = ["id", "pid", "device", "state", "restarts", "batches"]
    console.print(_table("workers", stats["workers"], columns))
    columns = ["name", "version", "is_current", "state", "requests", "batches", "queue_rows"]
    console.print(_table("models", stats["models"], columns))
    for model in stats["models"]:
        if model["error"]:
            console.print(f"{model['name']} version {model['version']}: {model['error']}")


def _table(title: str, rows: list[dict[str, Any]], columns: list[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(_cell(row[column]) for column in columns))
    return table


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else ""
    return str(value)
