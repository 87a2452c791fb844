"""The systemd units of Batchyard: whether they are there, and how they fare."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from batchyard.cli.diagnosis.finding import Finding, failure, ok, warning

_CHECK = "systemd"
_PATTERNS = ("batchyard.service", "batchyard@*.service")
_PROPERTIES = (
    "Id",
    "LoadState",
    "ActiveState",
    "SubState",
    "Result",
    "NRestarts",
    "UnitFileState",
    "StatusText",
    "ExecMainStatus",
)
_TIMEOUT_S = 5.0


def check_units(units: Sequence[Mapping[str, str]] | None, refusal: str) -> list[Finding]:
    """``units`` has the properties of each; None where systemd does not run."""
    if units is None:
        return [ok(_CHECK, refusal)]
    there = [unit for unit in units if unit.get("LoadState") not in ("not-found", None)]
    if not there:
        return [ok(_CHECK, "runs; no batchyard unit is installed (batchyard install-service)")]
    return [_check_unit(unit) for unit in there]


def _check_unit(unit: Mapping[str, str]) -> Finding:
    name = unit["Id"]
    check = f"unit {name}"
    state = f"{unit['ActiveState']} ({unit['SubState']})"
    logs = f"journalctl -u {name} -n 50"
    if unit["LoadState"] != "loaded":
        remedy = f"systemd-analyze verify {name}."
        return failure(check, f"does not load: {unit['LoadState']}", remedy)
    if unit["ActiveState"] == "failed":
        found = f"{state}: {unit['Result']}, exit code {unit['ExecMainStatus']}"
        return failure(check, found, f"{logs} says why; then systemctl restart {name}.")
    restarts = int(unit.get("NRestarts") or 0)
    if restarts:
        found = f"{state}, restarted {restarts} times by systemd"
        return warning(check, found, f"{logs} says why.")
    if unit["ActiveState"] == "active" and unit.get("UnitFileState") == "disabled":
        return warning(check, f"{state}, but not at boot", f"systemctl enable {name}.")
    said = unit.get("StatusText", "")
    return ok(check, f"{state}{': ' + said if said else ''}")


def read_units(root: Path = Path("/")) -> tuple[list[dict[str, str]] | None, str]:
    """The units' properties, or None and why."""
    if not (root / "run/systemd/system").is_dir():
        return None, "does not run here (as in most containers)"
    command = ["systemctl", "show", f"--property={','.join(_PROPERTIES)}", *_PATTERNS]
    try:
        said = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return None, f"runs, but does not say how its units are: {error}"
    return parse(said), ""


def parse(said: str) -> list[dict[str, str]]:
    """``systemctl show`` has a block of ``NAME=VALUE`` lines for each unit."""
    return [
        dict(line.partition("=")[::2] for line in block.splitlines())
        for block in said.split("\n\n")
        if block.strip()
    ]
