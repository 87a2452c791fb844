"""``batchyard check``: what ``serve`` would do with a configuration, without doing it."""

from __future__ import annotations

import os
from typing import Any

import click

from batchyard.cli.serving import load_config, plan, refuse, serving_arguments
from batchyard.pool.access import is_hidden
from batchyard.pool.gateways import GatewayPlan
from batchyard.wire.errors import ConfigurationError
from batchyard.wire.keys import nobody_allowed, read_folder


@click.command()
@serving_arguments
def command(**options: Any) -> None:
    """Check a configuration against this machine: devices, models, endpoints.

    Takes what `batchyard serve` takes, and tells what that would do. Loads no model. Exits with 2
    and says all that is wrong when it cannot work.
    """
    try:
        server_plan, notes = plan(load_config(options))
    except ConfigurationError as error:
        refuse(error)
    for endpoint in server_plan.broker.bind:
        click.echo(f"endpoint  {endpoint}")
    for gateway in server_plan.gateways:
        click.echo(f"{gateway.name:9} {_where(gateway)}")
    if server_plan.broker.curve_secret_key_file:
        folder = server_plan.broker.curve_clients
        keys, complaints = read_folder(folder)
        names = ", ".join(sorted(keys.values())) or "none"
        click.echo(f"keys      by TCP only clients with keys: {names}")
        if is_hidden(server_plan.broker.curve_secret_key_file, os.environ):
            notes.append(
                "the server's key is a credential, which systemd shows to the service only"
            )
        notes += complaints if keys else [*complaints, nobody_allowed(folder)]
    sources = {(s.name, s.version): s for s in server_plan.workers[0].settings.models}
    for model in server_plan.broker.models:
        if model.error:
            notes.append(f"model {model.name} version {model.version} is not served: {model.error}")
            continue
        batching = model.batching
        source = sources[model.name, model.version]
        click.echo(
            f"model     {model.name} version {model.version} from {source.path}: "
            f"max_batch_size {batching['max_batch_size']}, "
            f"batch_timeout_micros {batching['batch_timeout_micros']}"
        )
    for worker in server_plan.workers:
        settings = worker.settings
        limit = f", {settings.memory_limit_mb} MiB" if settings.memory_limit_mb else ""
        growth = ", memory growth" if settings.memory_growth else ""
        bound = worker.environment.get("CUDA_VISIBLE_DEVICES", "")
        click.echo(
            f"worker    {settings.worker_id} on {settings.device} "
            f"(CUDA_VISIBLE_DEVICES={bound}{limit}{growth})"
        )
    click.echo(f"arena     {server_plan.arena_nbytes >> 20} MiB")
    for note in notes:
        click.echo(f"note      {note}")
    click.echo("ok")


def _where(gateway: GatewayPlan) -> str:
    places = [] if gateway.port is None else [f"{gateway.host} port {gateway.port or 'free'}"]
    if gateway.socket_path is not None:
        places.append(gateway.socket_path)
    many = f" ({gateway.processes} processes)" if gateway.processes > 1 else ""
    return " and ".join(places) + many
