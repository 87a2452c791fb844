"""The ``batchyard`` command itself, in processes of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

MAIN = [sys.executable, "-c", "from batchyard.cli.main import main; main()"]
SUBCOMMANDS = ["serve", "demo", "predict", "status", "check", "bench"]


def batchyard(
    *arguments: str, pythonpath: Path | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ)
    if pythonpath is not None:
        paths = [str(pythonpath), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
    return subprocess.run(
        [*MAIN, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        cwd=cwd,
        check=False,
    )


def test_version_is_that_of_the_installed_package(tmp_path: Path) -> None:
    info = tmp_path / "batchyard-1.2.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: batchyard\nVersion: 1.2.3\n")
    # Not in the checkout: an egg-info there would come first.
    result = batchyard("--version", pythonpath=tmp_path, cwd=tmp_path)
    assert result.returncode == 0
    assert result.stdout.endswith("version 1.2.3\n")


def test_help_lists_the_subcommands() -> None:
    result = batchyard("--help")
    assert (result.returncode, result.stderr) == (0, "")
    listed = [line.split()[0] for line in result.stdout.partition("Commands:")[2].splitlines()[1:]]
    assert [name for name in SUBCOMMANDS if name in listed] == SUBCOMMANDS


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_each_subcommand_has_help(name: str) -> None:
    result = batchyard(name, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert f" {name} [OPTIONS]" in result.stdout


@pytest.mark.parametrize("arguments", [["nope"], ["--nope"], ["status", "--nope"], ["predict"]])
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    result = batchyard(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert "Usage: " in result.stderr


def test_client_without_the_server_extra_is_told_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("raise ImportError('no click')\n")
    result = batchyard("status", pythonpath=tmp_path)
    assert result.returncode == 2
    assert "pip install 'batchyard[cpu]'" in result.stderr


def test_what_measures_says_what_to_install(tmp_path: Path) -> None:
    without = (
        "import sys\nsys.modules.update(dict.fromkeys(['hdrh', 'tomlkit', 'matplotlib', 'grpc']))\n"
        "import importlib.util\nfind = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name: find(name) if sys.modules.get(name, 1) else None\n"
    )
    (tmp_path / "sitecustomize.py").write_text(without)
    told = batchyard("bench", "overload", "--help", pythonpath=tmp_path)
    assert (told.returncode, told.stderr) == (0, "")
    for command in (["bench", "small"], ["load", "m"]):
        refused = batchyard(*command, pythonpath=tmp_path)
        assert refused.returncode == 2
        assert "pip install 'batchyard[bench]'" in refused.stderr
        assert "Traceback" not in refused.stderr


def test_a_subcommand_loads_no_tensorflow() -> None:
    code = (
        "import sys; from batchyard.cli import check, predict, serve, status; print(*sys.modules)"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    ).stdout.split()
    assert "click" in loaded
    assert "tensorflow" not in loaded


def test_ctrl_c_has_the_exit_code_of_shells() -> None:
    # What runs tests in the background has them ignore SIGINT; a person's shell does not.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n" + MAIN[-1]
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
        endpoint = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        process = subprocess.Popen(
            [sys.executable, "-c", code, "status", "--endpoint", endpoint],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            # It waits for an answer then.
            connection, _ = silent.accept()
            with connection:
                process.send_signal(signal.SIGINT)
                output = process.communicate(timeout=60)
        finally:
            process.kill()
            process.communicate()
    assert (process.returncode, *output) == (130, "", "\n")
