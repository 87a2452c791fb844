"""``batchyard tune``: finds the batching parameters by experiment, and writes TOML."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from batchyard.cli.local_server import ServerDidNotStart
from batchyard.cli.outputs import end_on_sigterm
from batchyard.cli.serving import plan, refuse
from batchyard.pool.config import WorkerGroup, validate
from batchyard.pool.plan import usable_cpus
from batchyard.wire.control import EXIT_CONFIGURATION, EXIT_FAILURE, INTERRUPTED_EXIT
from batchyard.wire.errors import BatchyardError, ConfigurationError

if TYPE_CHECKING:
    import tomlkit

    from batchyard.benchmarks.tuning.bench import Goal
    from batchyard.benchmarks.tuning.procedure import Tuning
    from batchyard.benchmarks.tuning.subject import Subject

_FILE = click.Path(dir_okay=False, path_type=Path)
_NEEDED = ("tomlkit", "hdrh")
_STANDARD_OUTPUT = Path("-")


def _shape(context: click.Context, option: click.Parameter, text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(word) for word in text.split(",") if word)
    except ValueError:
        raise click.BadParameter(f"{text!r} is no list like 128,3") from None
    if any(size < 1 for size in shape):
        raise click.BadParameter("sizes must be 1 or more")
    return shape


@click.command()
@click.argument("model")
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    help="The configuration that names MODEL. Without it MODEL is NAME=PATH, as `batchyard serve "
    "--model` takes it.",
)
@click.option(
    "--goal",
    type=click.Choice(["throughput"]),
    help="As many requests a second as can be, however long each takes: the default.",
)
@click.option(
    "--deadline-ms",
    type=click.FloatRange(0, min_open=True),
    help="The goal instead: the highest rate at which 99 % are answered within this time.",
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    help="Workers on each device; without it, and where the file does not say, it is searched for "
    "on a CPU.",
)
@click.option(
    "--device",
    "devices",
    multiple=True,
    help="As for `batchyard serve`; replaces the file's. May be given again.",
)
@click.option(
    "--rows", type=click.IntRange(1), default=1, show_default=True, help="Rows of each request."
)
@click.option(
    "--shape",
    default="",
    callback=_shape,
    help="Sizes of the inputs' open dimensions behind the first, such as 128. Default: 1 each.",
)
@click.option(
    "--largest-batch",
    type=click.IntRange(1),
    help="No larger batches are tried. Default: 1024 rows on a CPU, 8192 on a GPU, as far as a "
    "quarter of the arena holds them.",
)
@click.option(
    "--budget-s",
    type=click.FloatRange(5, 86_400),
    help="About how many seconds it may take.  [default: 90, or 300 times a deadline of more "
    "than 300 ms]",
)
@click.option(
    "--out",
    type=_FILE,
    default=Path("tuned.toml"),
    show_default=True,
    help="Write the configuration here; - prints it.",
)
@click.option("--force", is_flag=True, help="Overwrite a file that is there.")
@click.option("--html", "html_path", type=_FILE, help="Write a page with the plots here.")
@click.option("--json", "json_path", type=_FILE, help="Write all that was measured here.")
def command(**options: Any) -> None:
    """Find MODEL's batching parameters by experiment.

    Runs servers of its own with MODEL alone, loads them, and follows TensorFlow Serving's tuning
    guide: batch threads, max_batch_size, batch_timeout_micros, allowed_batch_sizes,
    max_enqueued_batches. Each choice is measured beside its alternatives and explained; in the end
    the configuration is verified beside what there was before. docs/tuning.md says how to do the
    same by hand.
    """
    try:
        _check_usage(options)
        request = _read(options)
    except ConfigurationError as error:
        refuse(error)
    # What `kill` or `timeout` ends has servers to end too, as what Ctrl-C ends.
    end_on_sigterm()
    _tune(request, options)


@dataclass(frozen=True, slots=True)
class _Request:
    document: tomlkit.TOMLDocument
    subject: Subject
    goal: Goal


def _check_usage(options: dict[str, Any]) -> None:
    """All that can be wrong before the minutes that it takes. Raises ConfigurationError."""
    if options["goal"] and options["deadline_ms"]:
        raise ConfigurationError("--goal throughput and --deadline-ms are two goals: give one")
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if options["html_path"] is not None and importlib.util.find_spec("matplotlib") is None:
        missing.append("matplotlib")
    if missing:
        raise ConfigurationError(
            f"tune needs {' and '.join(missing)}: pip install 'batchyard[bench]'"
        )
    for name in ("out", "html_path", "json_path"):
        path: Path | None = options[name]
        if path is None or path == _STANDARD_OUTPUT:
            continue
        if not path.absolute().parent.is_dir():
            raise ConfigurationError(f"{path}: there is no folder {path.absolute().parent}")
        if name == "out" and path.exists() and not options["force"]:
            raise ConfigurationError(
                f"{path} is there already: --force overwrites it, --out FILE writes another"
            )


def _read(options: dict[str, Any]) -> _Request:
    """What is to be tuned. Raises ConfigurationError."""
    # Not before they are known to be installed.
    from batchyard.benchmarks.tuning.bench import Deadline, Throughput
    from batchyard.benchmarks.tuning.subject import Subject
    from batchyard.benchmarks.tuning.toml_file import set_workers

    document, name = _document(options["model"], options["config_path"])
    given = _groups(document, options)
    if given is not None:
        set_workers(document, given)
    tables = document.unwrap()
    config = validate(tables, str(options["config_path"] or "command line"))
    if name not in [model.name for model in config.models]:
        known = ", ".join(model.name for model in config.models)
        raise ConfigurationError(f"{options['config_path']} has no model {name!r}; it has {known}")
    server_plan, notes = plan(config)
    for note in notes:
        click.echo(f"batchyard: {note}", err=True)
    devices = {worker.settings.device for worker in server_plan.workers}
    deadline_ms = options["deadline_ms"]
    subject = Subject(
        tables=tables,
        config=config,
        model=name,
        device="cpu" if devices == {"cpu"} else "gpu",
        workers=len(server_plan.workers),
        cores=len(usable_cpus()),
        workers_are_given=any("count" in group.model_fields_set for group in config.pool.workers),
        rows=options["rows"],
        shape=options["shape"],
        largest_batch=options["largest_batch"],
    )
    if not subject.served.batching.enable_batching:
        raise ConfigurationError(f"model {name!r} has enable_batching = false: nothing to tune")
    return _Request(document, subject, Deadline(deadline_ms / 1e3) if deadline_ms else Throughput())


def _document(model: str, config_path: Path | None) -> tuple[tomlkit.TOMLDocument, str]:
    from batchyard.benchmarks.tuning import toml_file

    name, separator, path = model.partition("=")
    if config_path is not None:
        if separator:
            raise ConfigurationError(f"with --config MODEL is a name in it, not {model}")
        return toml_file.read(config_path), name
    if not name or not path:
        raise ConfigurationError(f"{model}: give --config CONFIG.toml, or MODEL as NAME=PATH")
    python = ":" in path and not Path(path).exists()
    return toml_file.of_model(name, path, python=python), name


def _groups(document: tomlkit.TOMLDocument, options: dict[str, Any]) -> list[dict[str, Any]] | None:
    """``[[pool.workers]]`` that the command line says; None: those of the file."""
    workers, devices = options["workers"], options["devices"]
    if devices:
        count = {} if workers is None else {"count": workers}
        return [{"device": device, **count} for device in devices]
    if workers is None:
        return None
    pool = document.unwrap().get("pool", {})
    groups = pool.get("workers") if isinstance(pool, dict) else None
    default = {"device": WorkerGroup.model_fields["device"].default}
    return [{**group, "count": workers} for group in groups or [default]]


def _tune(request: _Request, options: dict[str, Any]) -> None:
    from batchyard.benchmarks.failures import BenchmarkFailed
    from batchyard.benchmarks.progress import ProgressBar
    from batchyard.benchmarks.tuning.procedure import tune, usual_budget_s
    from batchyard.benchmarks.tuning.server_bench import ServerBench
    from batchyard.benchmarks.tuning.tuner import GoalOutOfReach

    subject = request.subject
    click.echo(f"tuning {subject.model} for {request.goal}", err=True)
    budget_s = options["budget_s"] or usual_budget_s(request.goal)
    try:
        with ServerBench(subject) as bench, ProgressBar("starting a server", budget_s) as bar:

            def tell(line: str) -> None:
                bar.note(f"  {line}")
                # It begins with what the experiment was for.
                bar.show(line.partition(":")[0], min(bench.spent_s(), budget_s))

            bench.start()
            tuning = tune(bench, request.goal, budget_s, tell)
    except KeyboardInterrupt:
        click.echo("batchyard: stopped; nothing was written", err=True)
        sys.exit(INTERRUPTED_EXIT)
    except (ServerDidNotStart, BenchmarkFailed, GoalOutOfReach, BatchyardError) as error:
        click.echo(f"batchyard: {error}", err=True)
        sys.exit(EXIT_FAILURE)
    _show(tuning)
    try:
        _write(request, tuning, options)
    except (ConfigurationError, OSError) as error:
        click.echo(f"batchyard: {error}", err=True)
        sys.exit(EXIT_CONFIGURATION)


def _show(tuning: Tuning) -> None:
    from batchyard.benchmarks.tuning import results

    table = Table(title=f"chosen for {tuning.goal}", title_justify="left", show_lines=True)
    for column in ("parameter", "value", "before", "why"):
        table.add_column(column, overflow="fold")
    for row in results.rows(tuning):
        table.add_row(*row)
    console = Console(highlight=False)
    console.print(table)
    console.print(results.verified(tuning), markup=False)
    for note in tuning.notes:
        console.print(f"note: {note}", markup=False)
    console.print(f"{tuning.spent_s:.0f} s, {len(tuning.experiments)} load tests", markup=False)


def _write(request: _Request, tuning: Tuning, options: dict[str, Any]) -> None:
    from batchyard.benchmarks.tuning import results, toml_file

    document, model = request.document, request.subject.model
    groups = request.subject.groups(tuning.setting.placement)
    if groups is not None:
        toml_file.set_workers(document, groups)
    text = toml_file.tuned(document, model, tuning.setting, results.reasons(tuning))
    out: Path = options["out"]
    if out == _STANDARD_OUTPUT:
        click.echo(text, nl=False)
    else:
        out.write_text(text)
        click.echo(f"written: {out}; try it: batchyard serve {out}")
    if options["json_path"] is not None:
        found = results.to_json(tuning, model)
        options["json_path"].write_text(json.dumps(found, indent=2) + "\n")
    if options["html_path"] is not None:
        from batchyard.benchmarks.tuning.page import page

        options["html_path"].write_text(page(tuning, model))
