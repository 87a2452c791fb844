"""A child process that is asked over a pipe."""

from __future__ import annotations

import os

import pytest
from support.waiting import wait_until

from batchyard.benchmarks.child import Child, ChildFailed

MODULE = "support.asked_child"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    tests = os.path.dirname(os.path.dirname(__file__))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")]))


def test_answers_come_back_and_prints_do_not_disturb_them() -> None:
    with Child(MODULE) as child:
        assert child.ask("add", a=1, b=2.5) == 3.5
        assert child.ask("shout", text="hello") == "HELLO"
        pid = child.ask("pid")
        os.kill(pid, 0)
    assert not _exists(pid)


def test_several_work_at_once() -> None:
    with Child(MODULE) as a, Child(MODULE) as b:
        a.tell("add", a=1, b=1)
        b.tell("add", a=2, b=2)
        assert (a.hear(), b.hear()) == (2, 4)


def test_error_tells_what_the_child_said() -> None:
    with Child(MODULE) as child, pytest.raises(ChildFailed, match="ZeroDivisionError"):
        child.ask("divide", a=1, b=0)


def test_child_that_died_is_noticed() -> None:
    with Child(MODULE) as child:
        pid = child.ask("pid")
        with pytest.raises(ChildFailed, match="ended"):
            child.ask("leave")
        with pytest.raises(ChildFailed, match="ended"):
            child.ask("pid")
    assert not _exists(pid)


def test_child_is_not_waited_for_when_the_block_failed() -> None:
    child = Child(MODULE).__enter__()
    pid = child.ask("pid")
    child.tell("forever")
    child.__exit__(KeyboardInterrupt, None, None)
    assert not _exists(pid)


def test_child_ends_with_its_parent() -> None:
    # What a parent does that is killed: its end of the pipe closes.
    with Child(MODULE) as child:
        pid = child.ask("pid")
        assert child._process.stdin is not None
        child._process.stdin.close()
        wait_until(lambda: child._process.poll() is not None, lambda: f"{pid} is there")
        assert child._process.returncode == 0


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
