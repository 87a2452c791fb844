"""What ``benchmarks/gpu/check`` asks of a Python before Batchyard can be imported."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from batchyard.benchmarks.gpu import check_installation
from batchyard.benchmarks.gpu.check_installation import is_satisfied, link, main, requirements

ROOT = Path(__file__).parents[3]


def test_every_package_that_it_names_is_required_somewhere() -> None:
    known = requirements(ROOT)
    assert known["pyzmq"].startswith("pyzmq>=")
    named = (
        *check_installation._NEEDED,
        *check_installation._WANTED,
        *check_installation._WANTED_FOR_PLOTS,
    )
    assert set(named) <= known.keys()


@pytest.mark.parametrize(
    ("requirement", "satisfied"),
    [("numpy>=2.1", True), ("numpy>=99", False), ("numpy", True), ("no-such-package", False)],
)
def test_what_is_installed(requirement: str, satisfied: bool) -> None:
    assert is_satisfied(requirement) is satisfied


def test_a_checkout_is_linked_into_an_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    link(ROOT, ["/opt/torch/site-packages"])
    made = [path.lstat().st_ino for path in sorted(tmp_path.rglob("*"))]
    link(ROOT, ["/opt/torch/site-packages"])
    # Servers may run from it.
    assert [path.lstat().st_ino for path in sorted(tmp_path.rglob("*"))] == made
    (tmp_path / "batchyard" / "wire").unlink()
    link(ROOT, ["/opt/torch/site-packages"])
    assert (tmp_path / "batchyard_sites.pth").read_text() == "/opt/torch/site-packages\n"
    script = ROOT / "benchmarks/gpu/check_installation.py"
    ended = subprocess.run(
        [sys.executable, "-P", script, ROOT, "--quiet"],
        env={"PYTHONPATH": str(tmp_path)},
        check=False,
        timeout=30,
    )
    assert ended.returncode == 0


def test_what_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check_installation, "is_satisfied", lambda name: "msgpack" not in name)
    assert main(ROOT) == 1
    assert "it cannot run without: 'msgpack>=1.1' (pip install" in capsys.readouterr().out
    main(ROOT, "--needed")
    assert capsys.readouterr().out == "msgpack>=1.1\n"


@pytest.mark.parametrize("python", ["no-such-python", "old-python"])
def test_a_python_that_cannot_run_it_is_named(tmp_path: Path, python: str) -> None:
    """Of the script itself: an old one knows too few options to say so."""
    old = tmp_path / "old-python"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.10.12\nexit 2\n')
    old.chmod(0o755)
    ended = subprocess.run(
        [ROOT / "benchmarks/gpu/check", "--only-check"],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": python},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stderr == ""
    assert ended.stdout.startswith(f"{python} (")
    assert ("Python 3.10.12" in ended.stdout) == (python == "old-python")
    assert "Batchyard needs Python 3.11 or newer; PYTHON names one" in ended.stdout
