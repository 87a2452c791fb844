"""Entry point of the ``batchyard`` command."""

from __future__ import annotations

import importlib
import sys

from batchyard.wire.control import INTERRUPTED_EXIT

# Subcommands are imported when they are asked for, so that each starts fast.
_SUBCOMMANDS = {
    "serve": "Serve models.",
    "tfs": "Serve models with tensorflow_model_server's flags and files.",
    "demo": "Make a small model, serve it, send traffic, show the result.",
    "predict": "Run one request; prints JSON.",
    "status": "Show how a running server fares.",
    "top": "Show how a running server fares, live.",
    "check": "Check a configuration against this machine.",
    "doctor": "Look for what keeps a server from running well here.",
    "install-service": "Install Batchyard as a service of systemd.",
    "keys": "Make keys, and say who may connect to a server.",
    "load": "Put load on a server and say how it fared.",
    "tune": "Find a model's batching parameters by experiment.",
    "bench": "Measure, beside a reference in the same run.",
}


def main() -> None:
    """Runs the command line. Exits with 0, 2 for wrong usage, or what the subcommand says."""
    try:
        import click
    except ImportError:
        print(
            "batchyard: the command line needs more than the client: "
            "pip install 'batchyard[cpu]' or 'batchyard[gpu]'",
            file=sys.stderr,
        )
        sys.exit(2)

    class Subcommands(click.Group):
        def list_commands(self, ctx: click.Context) -> list[str]:
            return list(_SUBCOMMANDS)

        def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
            if cmd_name not in _SUBCOMMANDS:
                return None
            module = importlib.import_module(f"batchyard.cli.{cmd_name.replace('-', '_')}")
            command: click.Command = module.command
            return command

        def invoke(self, ctx: click.Context) -> object:
            try:
                return super().invoke(ctx)
            except KeyboardInterrupt:
                # As a shell has it for what a signal ended; click's own is 1, a failure.
                click.echo(err=True)
                sys.exit(INTERRUPTED_EXIT)

        def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
            with formatter.section("Commands"):
                formatter.write_dl(list(_SUBCOMMANDS.items()))

    @click.group(cls=Subcommands, context_settings={"max_content_width": 100})
    @click.version_option(package_name="batchyard")
    def batchyard() -> None:
        """Serves TensorFlow SavedModels from a pool of processes, batching their requests.

        `batchyard demo` shows what that is. `batchyard COMMAND --help` says more of each command.
        """

    batchyard()
