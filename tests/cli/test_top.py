"""``batchyard top``: what it shows, and how it fares in a terminal."""

from __future__ import annotations

import copy
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.metrics_samples import busy_pair, histogram, measure, model, sample, worker
from support.server import Server, callable_path, model_table
from support.terminal import Terminal
from support.waiting import wait_until

from batchyard.cli import top_devices
from batchyard.cli.top import command
from batchyard.cli.top_devices import LocalDevices
from batchyard.cli.top_view import TopView
from batchyard.pool.inventory import Gpu, Inventory

EXPECTED = """\
batchyard top  ready  tcp://127.0.0.1:8600
broker 42, up 12 s, 25% of a core, 3 clients; arena 25.0% of 512 MiB

requests 1,440/s  in time 1,370/s  errors 30.0/s  queue 12 rows
latency p50 6.03 ms  p95 14.0 ms  p99 19.6 ms  waited p50 0.70 ms

MODEL                   req/s   err/s missed/s  queue      p50      p95      p99
double 1                1,440    30.0     43.0     12  6.03 ms  14.0 ms  19.6 ms
  batches 16▂█32 rows, mean 28.8, 4% padding; run 6.85 ms, predicted within 4%
  errors: UNAVAILABLE 27.0/s, DEADLINE_EXCEEDED 3.00/s
  deadline missed: refused 1.50/s, dropped 1.00/s, expired 0.50/s, late 40.0/s
<script>alert(1)</s…        0       0        0      0        –        –        –

WORKER DEVICE    STATE    BUSY                      BATCHES/S RESTARTS      PID
0      cpu       BUSY     ████████████████░░░░   80%     50.0        0      100
1      gpu:0     READY    ░░░░░░░░░░░░░░░░░░░░    0%        0        1      333

12:00:02 worker 1 was started again"""
NOON = time.mktime((2026, 11, 23, 12, 0, 0, 0, 0, -1))


def shown(*samples: dict[str, Any], width: int = 80, height: int = 24, ascii: bool = False) -> str:
    view = TopView("tcp://127.0.0.1:8600", ascii)
    for i, one in enumerate(samples):
        view.heard(one, NOON + 2 * i)
    lines = view.lines(width, height)
    assert len(lines) <= height
    return "\n".join(line.plain.rstrip() for line in lines)


def test_what_it_shows() -> None:
    assert shown(*busy_pair()) == EXPECTED


def test_the_first_answer_shows_all_since_the_start() -> None:
    assert "requests 254/s" in shown(busy_pair()[1])


def test_columns_go_where_there_is_no_room() -> None:
    narrow = shown(*busy_pair(), width=50).splitlines()
    heading = next(line for line in narrow if line.startswith("MODEL"))
    assert heading.split() == ["MODEL", "req/s", "err/s", "queue", "p99"]
    assert len(heading) == 50


@pytest.mark.parametrize(
    ("width", "left"),
    [(63, ["BATCHES/S", "RESTARTS"]), (62, ["BATCHES/S"]), (54, ["BATCHES/S"]), (53, [])],
)
def test_workers_columns_go_where_there_is_no_room(width: int, left: list[str]) -> None:
    lines = shown(*busy_pair(), width=width).splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("WORKER"))
    assert lines[first].split() == ["WORKER", "DEVICE", "STATE", "BUSY", *left, "PID"]
    assert all(len(line) <= width for line in lines[first : first + 3])
    assert lines[first + 1].endswith(" 100")


def test_the_busiest_models_are_shown_where_not_all_fit() -> None:
    models = [model(f"m{i:02}") for i in range(40)]
    busy = copy.deepcopy(models)
    busy[33]["measures"] = [measure(codes={"OK": 5})]
    text = shown(sample(1.0, models), sample(2.0, busy))
    assert "m33 1" in text
    assert "more for which there is no room here" in text


def test_terminals_of_few_characters() -> None:
    text = shown(*busy_pair(), ascii=True)
    assert "16:#32 rows" in text
    assert "################....   80%" in text


def test_names_do_not_command_the_terminal() -> None:
    text = shown(sample(1.0, [model("a\x1b[2Jb\n", state="END", error="no\x1b]0;x\x07")]))
    assert "a�[2Jb� 1" in text
    assert "\x1b" not in text
    assert "NOT READY: model" in text


def test_what_is_beyond_all_bounds() -> None:
    beyond = [model(measures=[measure(request_seconds=histogram([0] * 7 + [9], 20.0))])]
    assert "p50 >0.1 s" in shown(sample(1.0), sample(2.0, beyond))


def test_silence_and_return() -> None:
    view = TopView("here")
    before, after = busy_pair()
    view.heard(before, NOON)
    view.missed("the connection to the server was lost", NOON + 5)
    view.missed("the connection to the server was lost", NOON + 6)
    first = view.lines(80, 24)[0].plain
    assert "NO ANSWER since 12:00:05: the connection to the server was lost" in first
    after["broker"] |= {"epoch": 8, "uptime_s": 1.0}
    view.heard(after, NOON + 65)
    text = "\n".join(line.plain for line in view.lines(80, 24))
    assert "12:01:05 answers again, after 1 min 0 s" in text
    assert "12:01:05 the broker was started again" in text


def test_gpus_of_a_server_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        {
            "device": "gpu:0",
            "name": "NVIDIA H100",
            "utilization": None,
            "memory_used_bytes": 2**30,
            "memory_bytes": 80 * 2**30,
        }
    ]

    class PlayedDevices:
        def __init__(self, named: list[tuple[str, str]]) -> None:
            assert named == [("gpu:0", "GPU-1")]

        def read(self) -> list[dict[str, Any]]:
            return found

    monkeypatch.setattr(top_devices, "Devices", PlayedDevices)
    monkeypatch.setattr(top_devices, "_named", lambda used, pid: [("gpu:0", "GPU-1")])
    devices = LocalDevices()
    assert "devices" not in devices.beside(sample(1.0))
    both = [devices.beside(sample(t, workers=[worker(device="gpu:0")])) for t in (1.0, 2.0)]
    text = shown(*map(dict, both))
    assert "gpu:0            GPU      ░░░░░░░░░░░░░░░░░░░░     –  1.0 of 80.0 GiB" in text


def test_a_driver_that_hangs_hides_gpus_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = threading.Event()

    def hang(used: set[str], pid: int) -> list[tuple[str, str]]:
        answers.wait()
        return []

    monkeypatch.setattr(top_devices, "_ANSWER_S", 0.01)
    monkeypatch.setattr(top_devices, "_named", hang)
    devices = LocalDevices()
    asked = sample(1.0, workers=[worker(device="gpu:0")])
    for _ in range(3):
        assert devices.beside(asked) is asked
    # One thread waits for it, not one for each look.
    assert [thread.name for thread in threading.enumerate()].count("nvml") == 1
    answers.set()
    wait_until(lambda: "devices" in devices.beside(asked), "it answers")


def test_gpus_are_numbered_as_the_server_was_told(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = server.stats()["broker"]["pid"]
    assert top_devices._environment(broker) is not None
    cards = tuple(Gpu(i, f"GPU-{i}", "NVIDIA H100", 81_559) for i in range(4))
    monkeypatch.setattr(top_devices, "read_inventory", lambda: Inventory(cards))
    told = {"CUDA_VISIBLE_DEVICES": "2,3"}
    monkeypatch.setattr(top_devices, "_environment", lambda pid: told)
    assert top_devices._named({"gpu:1"}, broker) == [("gpu:1", "GPU-3")]
    monkeypatch.undo()
    # Another machine's process, or none.
    assert top_devices._environment(os.getpid()) is None


def test_once(server: Server) -> None:
    result = CliRunner().invoke(
        command, ["--once", "--interval", "0.1", "--endpoint", server.endpoint]
    )
    assert (result.exit_code, result.stderr) == (0, "")
    assert "ready" in result.stdout.splitlines()[0]
    assert {"double", "upper", "echo"} <= {
        line.split(" ")[0] for line in result.stdout.splitlines()
    }
    assert "\x1b" not in result.stdout


def test_without_a_terminal_it_says_what_to_do(server: Server) -> None:
    result = CliRunner().invoke(command, ["--endpoint", server.endpoint])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--once" in result.stderr


def test_q_ends_it_and_leaves_the_terminal_as_it_was(server: Server) -> None:
    with Terminal(["top", "--interval", "0.1", "--endpoint", server.endpoint]) as terminal:
        before = terminal.modes()
        terminal.wait_for("ready", "echo 1")
        assert terminal.modes() != before
        terminal.press("x")
        terminal.press("q")
        # Its end is the terminal's: looked at while it is there.
        wait_until(lambda: terminal.read() and terminal.modes() == before, "the modes are back")
        assert terminal.wait_for_exit() == 0
    assert "Traceback" not in terminal.output


def test_in_a_terminal(tmp_path: Path) -> None:
    """It resizes, obeys NO_COLOR, outlives the server, and ends with Ctrl-C."""
    table = model_table("echo", callable_path("echo"))
    with Server(config=table, bind=[f"ipc://{tmp_path}/b"]) as server:
        arguments = ["top", "--interval", "0.1", "--endpoint", server.endpoint]
        with Terminal(arguments, environment={"NO_COLOR": "1"}) as terminal:
            terminal.wait_for("ready", "echo 1", "WORKER", "RESTARTS")
            terminal.resize(24, 50)
            wait_until(
                lambda: terminal.read() and "missed/s" not in terminal.screen, "fewer columns"
            )
            os.kill(server.stats()["broker"]["pid"], signal.SIGKILL)
            terminal.wait_for("the broker was started again", " ready")
            server.stop()
            terminal.wait_for("NO ANSWER since")
            terminal.press_ctrl_c()
            assert terminal.wait_for_exit() == 0
        # Nothing but reset, bold, dim and their ends.
        assert "\x1b[31m" not in terminal.output
        assert "Traceback" not in terminal.output
        # The screen that was there before is back, with its cursor.
        assert terminal.output.rstrip().endswith(("\x1b[?25h", "\x1b[?1049l"))
