"""How far a server's start has come, in a terminal."""

from __future__ import annotations

import io
from pathlib import Path

from support.server import Server, model_table
from support.terminal import Terminal, as_text

from batchyard.cli.startup_line import StartupLine, text
from batchyard.pool.startup import Startup

SLOW = """
import time

def run(inputs):
    time.sleep(0.2)
    return inputs
"""


def test_the_line() -> None:
    startup = Startup(4, lambda startup: None)
    startup.ready(0)
    startup.loading(1, 0.5, "loading a\x1b[2J")
    assert text(startup) == "starting: 1 of 4 workers ready  ████······  loading a[2J"


def test_nobody_sees_it_but_a_person() -> None:
    log = io.StringIO()
    with StartupLine(log) as line:
        line(Startup(1, lambda startup: None))
    assert log.getvalue() == ""


def test_a_server_that_starts_in_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    x = {"x": ("float32", [-1])}
    slow = model_table(
        "slow", f"{tmp_path}/slow.py:run", signature={"inputs": x, "outputs": x}, max_batch_size=4
    )
    config = tmp_path / "config.toml"
    config.write_text(slow)
    arguments = ["--device", "cpu", "--workers", "2", "--bind", f"ipc://{tmp_path}/b"]
    with Terminal(["serve", str(config), *arguments], columns=100) as terminal:
        terminal.wait_for("of 2 workers ready", "warming up at 4 rows: slow", "event=ready")
        # The line is gone before the server says that it is ready, and does not come back.
        until_ready = terminal.output.rpartition("event=ready")[0]
        assert "\r\x1b[K" in until_ready.rpartition("workers ready")[2]
        terminal.press_ctrl_c()
        assert terminal.wait_for_exit() == 0
        assert "workers ready" not in as_text(terminal.output.rpartition("event=ready")[2])


def test_a_log_has_nothing_of_it(server: Server) -> None:
    assert "event=model_loaded" in server.log
    assert "\r" not in server.log
    assert "workers ready" not in server.log
