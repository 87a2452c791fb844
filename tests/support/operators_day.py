"""Runs ``system/service/operators_day.sh`` with a wheel of this checkout in a container.

    PYTHONPATH=tests python -m support.operators_day

It takes root, systemd-container, an index for pip (to build the wheel) and two minutes. What the
service needs besides is taken from this Python's environment: it has no network.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from support import service_environment
from support.service_environment import ROOT
from support.systemd_container import Container


def main() -> int:
    """Says all that the script says; its exit status."""
    with tempfile.TemporaryDirectory(prefix="batchyard-day-", dir="/var/tmp") as name:
        folder = Path(name)
        wheels = folder / "wheels"
        subprocess.run(
            [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", wheels, ROOT],
            check=True,
        )
        (wheel,) = wheels.iterdir()
        binds = {
            **service_environment.binds(),
            "/opt/wheels": wheels,
            "/opt/checkout/tests": ROOT / "tests",
        }
        with Container(folder, binds) as container:
            for path, target in service_environment.links():
                container.run("ln", "-sfn", target, path)
            process = container.start(
                "env",
                "HOME=/root",
                f"PYTHON={service_environment.python_home()}/bin/python3",
                f"PACKAGES={service_environment.PACKAGES}",
                "/opt/checkout/tests/system/service/operators_day.sh",
                f"/opt/wheels/{wheel.name}",
            )
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="", flush=True)
            return process.wait()


if __name__ == "__main__":
    sys.exit(main())
