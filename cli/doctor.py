"""``batchyard doctor``: what an expert would check first, each with the remedy."""

from __future__ import annotations

import json
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import click

from batchyard.cli.connecting import key_options
from batchyard.cli.diagnosis.finding import Finding, Level, failure
from batchyard.wire.control import EXIT_FAILURE

_COLORS = {Level.OK: "green", Level.WARNING: "yellow", Level.FAILURE: "red"}
_CHECK_WIDTH = 20
_INDENT = " " * 10


@click.command()
@key_options
@click.argument("config", type=click.Path(path_type=Path), required=False)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.option(
    "--tensorflow/--no-tensorflow",
    default=True,
    show_default=True,
    help="Import TensorFlow, in a process of its own, which takes some seconds.",
)
@click.option(
    "--tensorflow-timeout",
    type=click.FloatRange(0, min_open=True),
    default=120.0,
    show_default=True,
    metavar="SECONDS",
    help="How long that may take.",
)
def command(
    config: Path | None, as_json: bool, tensorflow: bool, tensorflow_timeout: float
) -> None:
    """Look for what keeps a server from running well here, and say what to do.

    Looks at packages, TensorFlow, GPUs, memory, processors, limits, models, ports, a server that
    runs, and its systemd unit; with CONFIG.toml, at what that needs. Run it as the user that the
    server runs as. Changes nothing.

    Exits with 0 if there are warnings at most, with 1 if there is a failure.
    """
    findings = []
    for finding in _examine(config, tensorflow_timeout if tensorflow else None):
        findings.append(finding)
        if not as_json:
            click.echo(render(finding))
    if as_json:
        click.echo(json.dumps({"findings": [asdict(finding) for finding in findings]}, indent=1))
    else:
        click.echo(summary(findings))
    if any(finding.level is Level.FAILURE for finding in findings):
        sys.exit(EXIT_FAILURE)


def _examine(config: Path | None, tensorflow_timeout: float | None) -> Iterator[Finding]:
    try:
        from batchyard.cli.diagnosis.examination import examine, read_subject
        from batchyard.cli.diagnosis.tensorflow import Looking
    except ImportError as error:  # what is looked at needs the server's packages itself
        remedy = "pip install 'batchyard[cpu]' or 'batchyard[gpu]'."
        yield failure("packages", str(error), remedy)
        return
    # That it is not installed, the packages tell.
    wants = tensorflow_timeout is not None and find_spec("tensorflow") is not None
    looking = Looking() if wants else None
    try:
        yield from examine(read_subject(config), looking, tensorflow_timeout or 0.0)
    finally:
        if looking is not None:
            looking.close()


def render(finding: Finding) -> str:
    """A line for what was found, and one for the remedy."""
    level = click.style(f"{finding.level:<{len(_INDENT)}}", fg=_COLORS[finding.level])
    text = f"{level}{finding.check:<{_CHECK_WIDTH}} {finding.found}"
    if finding.remedy:
        text += "\n" + textwrap.indent(f"-> {finding.remedy}", _INDENT)
    return text


def summary(findings: Iterable[Finding]) -> str:
    """``20 ok, 2 warnings, 0 failures``."""
    counts = Counter(finding.level for finding in findings)
    warnings, failures = counts[Level.WARNING], counts[Level.FAILURE]
    return (
        f"{counts[Level.OK]} ok, {warnings} warning{'s' * (warnings != 1)}, "
        f"{failures} failure{'s' * (failures != 1)}"
    )
