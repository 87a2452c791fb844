"""``batchyard load``: what it takes, what it prints and writes, how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from support.server import Server
from support.waiting import wait_until

from batchyard.benchmarks.load.plan import Constant, LoadPlan, MixEntry, Poisson, Ramp, Steps, Trace
from batchyard.benchmarks.load.result import LoadResult
from batchyard.cli import load
from batchyard.cli.load import command

SHORT = ["--duration", "0.5", "--warmup", "0.1", "--quiet"]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(command, arguments)


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[LoadPlan]:
    """The plans that are made, which are not carried out."""
    plans: list[LoadPlan] = []
    monkeypatch.setattr(load, "_run", lambda plan, find_rate, outputs: plans.append(plan))
    return plans


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--rate", "100"], {"arrivals": Poisson(100), "duration_s": 10}),
        (["--rate", "9", "--arrivals", "constant"], {"arrivals": Constant(9)}),
        (["--ramp", "100:2000", "--duration", "7"], {"arrivals": Ramp(100, 2000, 7)}),
        (["--steps", "5:100,2:0"], {"arrivals": Steps(((5, 100), (2, 0))), "duration_s": 7}),
        (["--concurrency", "4", "--processes", "2"], {"concurrency": 4, "processes": 2}),
        (["--rate", "1", "--warmup", "0", "--seed", "3"], {"warmup_s": 0, "seed": 3}),
        (["--rate", "1", "--connect", "http://a:1"], {"target": "http://a:1"}),
        (["--rate", "1", "--endpoint", "tcp://a:1"], {"target": "tcp://a:1"}),
    ],
)
def test_options_make_a_plan(
    planned: list[LoadPlan], arguments: list[str], expected: dict[str, Any]
) -> None:
    result = run("resnet", *arguments)
    assert (result.exit_code, result.stderr) == (0, "")
    (plan,) = planned
    assert {name: getattr(plan, name) for name in expected} == expected
    assert plan.mix == (MixEntry("resnet"),)


def test_options_make_a_request(planned: list[LoadPlan]) -> None:
    options = "--rate 1 --deadline-ms 60 --rows 8 --shape 224,224 --signature s --version 3"
    assert run("m", *options.split(), "--inputs", '{"x": [1]}').exit_code == 0
    assert planned[0].mix == (MixEntry("m", 1.0, 8, 0.06, 3, None, "s", 0, {"x": [1]}, (224, 224)),)


def test_files(planned: list[LoadPlan], tmp_path: Path) -> None:
    trace, mix, inputs = (tmp_path / name for name in ("trace", "mix.toml", "inputs.json"))
    trace.write_text("0.5\n2.5\n")
    mix.write_text('[[requests]]\nmodel = "a"\n[[requests]]\nmodel = "b"\nweight = 2\n')
    inputs.write_text('{"x": [[1]]}')
    assert run("--mix", str(mix), "--trace", str(trace)).exit_code == 0
    assert run("m", "--rate", "1", "--inputs", f"@{inputs}").exit_code == 0
    assert [entry.model for entry in planned[0].mix] == ["a", "b"]
    both = run("--mix", str(mix), "--trace", str(trace), "--deadline-ms", "5", "--rows", "2")
    assert both.exit_code == 2
    assert "--deadline-ms, --rows: beside --mix" in both.output
    assert planned[0].arrivals == Trace(str(trace))
    # The last arrival is part of it.
    assert 2.5 < planned[0].duration_s < 2.51
    assert planned[1].mix[0].inputs == {"x": [[1]]}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "needs exactly one of --rate"),
        (["m"], "needs exactly one of --rate"),
        (["m", "--rate", "1", "--concurrency", "1"], "needs exactly one of"),
        (["m", "--rate", "1", "--find-rate"], "needs exactly one of"),
        (["--rate", "1"], "needs either MODEL or --mix"),
        (["m", "--rate", "0"], "--rate"),
        (["m", "--ramp", "5"], "no ramp like 100:2000"),
        (["m", "--ramp", "a:b"], "no ramp like 100:2000"),
        (["m", "--ramp", "0:0"], "rates must be more than 0"),
        (["m", "--steps", "5"], "no steps like"),
        (["m", "--steps", "0:5"], "must last more than 0 s"),
        (["m", "--trace", "/nowhere"], "/nowhere"),
        (["m", "--rate", "1", "--inputs", "{"], "the inputs are no JSON"),
        (["m", "--rate", "1", "--inputs", "@/no/x"], "the inputs' file /no/x: No such file"),
        (["m", "--rate", "1", "--inputs", "[1]"], "must be a JSON object"),
        (["m", "--rate", "1", "--shape", "a"], "no shape like"),
        (["m", "--rate", "1", "--json", "/nowhere/x"], "there is no folder /nowhere"),
        (["m", "--rate", "1", "--compare", __file__], "--compare needs --html"),
        (["m", "--rate", "1", "--connect", "nonsense"], "endpoint 'nonsense' must be"),
        (["m", "--concurrency", "1", "--processes", "2"], "must be 1 or more for each"),
        (["m", "--find-rate"], "needs a deadline"),
    ],
)
def test_wrong_usage(arguments: list[str], says: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert says in result.stderr


def test_a_page_to_compare_with_that_is_none(tmp_path: Path) -> None:
    page = str(tmp_path / "page.html")
    result = run("m", "--rate", "1", "--compare", __file__, "--html", page)
    assert result.exit_code == 2
    assert __file__ in result.stderr


def test_servers_that_do_not_serve_it(server: Server, tmp_path: Path) -> None:
    result = run("nobody", "--rate", "1", "--connect", server.endpoint)
    assert result.exit_code == 2
    assert "batchyard: NOT_FOUND: model 'nobody'" in result.stderr
    result = run("double", "--rate", "1", "--connect", f"ipc://{tmp_path}/none")
    assert result.exit_code == 1
    assert "UNAVAILABLE: no server answered" in result.stderr


def test_result_on_the_terminal_and_in_files(server: Server, tmp_path: Path) -> None:
    json_path, page = tmp_path / "one.json", tmp_path / "both.html"
    load_double = ["double", "--rate", "200", "--connect", server.endpoint, *SHORT]
    first = run(*load_double, "--deadline-ms", "5000", "--json", str(json_path))
    assert (first.exit_code, first.stderr) == (0, "")
    result = LoadResult.from_json(json.loads(json_path.read_text()))
    assert result.in_time == result.planned > 0
    for text in ("200/s, Poisson (open loop), 0.5 s", "planned", "in time", "late", "send lag"):
        assert text in first.stdout
    options = ["--compare", str(json_path), "--html", str(page)]
    second = run(*load_double, *options)
    assert (second.exit_code, second.stderr) == (0, "")
    # Without a deadline nothing is in time or late.
    assert "answered" in second.stdout
    assert ["late"] not in [line.split()[:1] for line in second.stdout.splitlines()]
    assert "<html" in page.read_text()
    assert "one" in page.read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ending_leaves_no_generator(server: Server, number: signal.Signals) -> None:
    arguments = ["load", "double", "--rate", "50", "--duration", "60", "--processes", "2"]
    arguments += ["--warmup", "0"]
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "batchyard.cli", *arguments, "--connect", server.endpoint],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        before = server.model_stats("double")["requests"]
        wait_until(lambda: len(_children(process.pid)) == 2, "the generators are there")
        children = _children(process.pid)
        # Under load, not while the interpreter starts.
        wait_until(
            lambda: server.model_stats("double")["requests"] > before + 20, "requests are sent"
        )
        process.send_signal(number)
        output, errors = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 128 + number
    if number is signal.SIGTERM:
        assert (output, errors) == ("", "")
    else:
        # What ran is shown.
        assert re.match(r"batchyard: stopped after [\d.]+ of 60 s: these are shown", errors)
        assert re.search(r"50/s, Poisson \(open loop\), [\d.]+ s, 2 processes", output)
        answered = re.search(r"answered +(\d+)", output)
        assert answered is not None
        assert int(answered[1]) > 0
    wait_until(
        lambda: not any(os.path.exists(f"/proc/{child}") for child in children),
        "the generators are gone",
    )


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
