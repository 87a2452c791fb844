"""``batchyard check``: a configuration, told as a plan for this machine, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from batchyard.cli.check import command

BIND = ["--bind", "tcp://127.0.0.1:8600"]


def check(*arguments: str) -> Result:
    return CliRunner().invoke(command, arguments)


def test_plan_is_told() -> None:
    result = check(
        "--model=m=my.module:function",
        "--device=cpu",
        "--workers=2",
        "--max-batch-size=8",
        "--batch-timeout-micros=500",
        "--arena-mb=16",
        *BIND,
    )
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0] == "endpoint  tcp://127.0.0.1:8600"
    assert lines[1] == (
        "model     m version 1 from my.module:function: max_batch_size 8, batch_timeout_micros 500"
    )
    assert [line.split(" (")[0] for line in lines[2:4]] == [
        "worker    0 on cpu",
        "worker    1 on cpu",
    ]
    assert lines[4] == "arena     16 MiB"
    assert lines[-1] == "ok"


def test_gateways_are_told() -> None:
    options = [
        *("--rest-port=8501", "--rest-host=0.0.0.0", "--rest-processes=2"),
        *("--grpc-port=0", "--grpc-socket-path=/run/grpc", "--metrics-port=9090"),
    ]
    result = check("--model=m=a:b", "--device=cpu", *BIND, *options)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[1:4] == [
        "rest      0.0.0.0 port 8501 (2 processes)",
        "grpc      127.0.0.1 port free and /run/grpc",
        "metrics   127.0.0.1 port 9090",
    ]


def test_savedmodels_version_is_told(tmp_path: Path) -> None:
    for version in ("1", "2"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "saved_model.pb").touch()
    result = check(f"--model=m={tmp_path}", "--device=cpu", *BIND)
    assert result.exit_code == 0
    assert f"model     m version 2 from {tmp_path / '2'}: " in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no model to serve"),
        (["--model=m=/no/such/folder"], "model 'm': /no/such/folder is no folder"),
        (["--model=m=a:b", "--device=gpu:99"], "gpu:99"),
        (["--model=m=a:b", "--device=tpu"], "tpu"),
        (["--model=m=a:b", "--bind=tcp://0.0.0.0:1"], "can be reached from other machines"),
    ],
)
def test_what_cannot_work_exits_with_2(arguments: list[str], message: str) -> None:
    result = check(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("batchyard: ")
    assert message in result.stderr


def test_everything_that_is_wrong_has_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text('[pool]\narena_mb = 0\n[[models]]\nname = "m"\npath = "/m"\nfoo = 1\n')
    result = check(str(path))
    assert result.exit_code == 2
    assert [line.split(": ")[:3] for line in result.stderr.splitlines()] == [
        ["batchyard", str(path), "pool.arena_mb"],
        ["batchyard", str(path), "models[0].foo"],
    ]


def test_unknown_option_is_wrong_usage() -> None:
    assert check("--no-such-option").exit_code == 2
