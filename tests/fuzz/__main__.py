"""``make fuzz``: runs every target under atheris, and says what came of it.

``python -m fuzz [--runs N] [--target NAME …] [--folder DIR]`` shares the runs out over the
targets; ``python -m fuzz --show FILE`` says what an input that crashed holds, runs it again, and
prints it as golden frames are written.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from fuzz.documents import NotADocument, pack, unpack
from fuzz.harness import TARGETS, FuzzTarget, run

_COVERAGE = re.compile(r"cov: (\d+)")
_DONE = re.compile(r"Done (\d+) runs")
_STATUS = re.compile(r"^#(\d+)", re.MULTILINE)
# Of one input. The slowest take milliseconds.
_TIMEOUT_S = 20
_RSS_LIMIT_MB = 2048
_INPUT_NBYTES_MAX = 1 << 14
_NOTHING_INSTALLED = """\
atheris is not installed, so there is no guided fuzzing here. `pip install '.[fuzz]'` brings it
where it has a wheel: CPython 3.11 to 3.14 on Linux, x86-64. Without it `pytest tests/fuzz` tests
the same properties."""
_WHAT_NOW = """
What crashed is in {folder}, each with what it raised (.txt). `python -m fuzz --show FILE` runs one
again and prints its bytes as hex. When it is fixed: bytes of a header, target, predict, cancel or
tensor frame become an entry of tests/wire/golden/invalid/*.hex (`raises CODE: words`), and other
documents an entry of tests/fuzz/found.py, which the tests run."""


@dataclass
class Outcome:
    """What came of one target."""

    name: str
    inputs: int
    edges: int
    crashes: list[Path]
    seconds: float
    exit_code: int
    log: str


def main() -> int:
    """The exit code: 0 when nothing crashed."""
    parser = argparse.ArgumentParser(prog="fuzz", description="See tests/fuzz/__main__.py.")
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--target", action="append", choices=list(TARGETS))
    parser.add_argument("--folder", type=Path, default=Path(".fuzz"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=0, help="0: another one each time")
    parser.add_argument("--show", type=Path)
    options = parser.parse_args()
    if options.show is not None:
        return _show(options.show)
    if importlib.util.find_spec("atheris") is None:
        print(_NOTHING_INSTALLED, file=sys.stderr)
        return 1
    chosen = {name: TARGETS[name] for name in options.target or TARGETS}
    shares = sum(target.share for target in chosen.values())
    print(f"{'target':<14}{'inputs':>10}{'edges':>8}{'crashes':>9}{'seconds':>9}", flush=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        outcomes = pool.map(
            lambda item: _fuzz(
                *item, -(-options.runs * item[1].share // shares), options.folder, options.seed
            ),
            chosen.items(),
        )
        done = [_print(outcome) for outcome in outcomes]
    inputs, crashes = sum(o.inputs for o in done), sum(len(o.crashes) for o in done)
    print(f"{'all':<14}{inputs:>10,}{'':>8}{crashes:>9}")
    failed = [outcome for outcome in done if outcome.exit_code or outcome.crashes]
    for outcome in failed:
        print(f"\n{outcome.name}: ended with {outcome.exit_code}")
        print("\n".join(_telling(outcome)))
    if failed:
        print(_WHAT_NOW.format(folder=options.folder / "crashes"))
    return 1 if failed else 0


def _fuzz(name: str, target: FuzzTarget, runs: int, folder: Path, seed: int) -> Outcome:
    corpus, found = folder / "corpus" / name, folder / "found" / name
    crashes = folder / "crashes"
    for path in (corpus, found, crashes):
        path.mkdir(parents=True, exist_ok=True)
    for number, document in enumerate(target.seeds()):
        (corpus / f"seed-{number:03}").write_bytes(pack(document))
    before = set(crashes.glob(f"{name}-*"))
    began = time.monotonic()
    # What is found goes to the first folder, and is where the next run goes on.
    command = [sys.executable, "-m", "fuzz.one_target", name, str(crashes), str(found), str(corpus)]
    command += [
        f"-runs={runs}",
        f"-timeout={_TIMEOUT_S}",
        f"-rss_limit_mb={_RSS_LIMIT_MB}",
        f"-max_len={_INPUT_NBYTES_MAX}",
        f"-artifact_prefix={crashes}/{name}-",
        "-len_control=0",
        *([f"-seed={seed}"] if seed else []),
    ]
    ended = subprocess.run(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, check=False)
    log = ended.stderr.decode(errors="replace")
    counts = [*_DONE.findall(log), *_STATUS.findall(log)]
    new = sorted(path for path in set(crashes.glob(f"{name}-*")) - before if path.suffix != ".txt")
    return Outcome(
        name,
        max(map(int, counts), default=0),
        max(map(int, _COVERAGE.findall(log)), default=0),
        new,
        time.monotonic() - began,
        ended.returncode,
        log,
    )


def _print(outcome: Outcome) -> Outcome:
    print(
        f"{outcome.name:<14}{outcome.inputs:>10,}{outcome.edges:>8,}{len(outcome.crashes):>9}"
        f"{outcome.seconds:>9.0f}",
        flush=True,
    )
    return outcome


def _telling(outcome: Outcome) -> list[str]:
    """The lines of the log that say what went wrong."""
    lines = [line for line in outcome.log.splitlines() if not line.startswith(("#", "INFO: "))]
    crashes = [line for line in lines if line.startswith("CRASH ")]
    # Else libFuzzer or Python ended it, and said why at the end.
    return crashes if outcome.exit_code == 0 else crashes + lines[-12:]


def _show(path: Path) -> int:
    data = path.read_bytes()
    try:
        document = unpack(data)
    except NotADocument:
        print("no document")
        return 0
    print(f"document: {document!r}")
    for field in document if isinstance(document, list) else []:
        if isinstance(field, bytes):
            print(f"bytes: {field.hex(' ')}")
    run(path.name.partition("-")[0], data)
    print("nothing is raised")
    return 0


if __name__ == "__main__":
    sys.exit(main())
