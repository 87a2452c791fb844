"""Ctrl-C at any moment: the request is given up, and the client works on and can be closed."""

from __future__ import annotations

import subprocess
import sys

import pytest
from support.server import Server

# Each in a process of its own: what waits for ever could not be ended here. They get the endpoint.
_PREAMBLE = """
import contextlib, faulthandler, os, random, signal, sys, threading, time
from unittest import mock
import numpy as np
from batchyard.clients import Client, errors

def works():
    until = time.monotonic() + 3
    while time.monotonic() < until:
        # The connection is made anew when the interrupt came in the middle of a message.
        with contextlib.suppress(errors.Unavailable):
            return client.predict("echo", x, timeout=5)["x"].tolist() == x["x"].tolist()

def closes():
    thread = threading.Thread(target=client.close, daemon=True)
    thread.start()
    thread.join(2)
    return not thread.is_alive()

def end():
    print("works" if works() else "does not work")
    print("closes" if closes() else "does not close", flush=True)
    os._exit(0)

# To see where, when it hangs.
faulthandler.dump_traceback_later(float(sys.argv[2]), exit=True)
client = Client(sys.argv[1])
x = {"x": np.arange(4.0).reshape(1, 4)}
large = {"x": np.ones((1, 40_000))}
small = x
for _ in range(30):
    client.predict("echo", x)
"""
_RANDOM = """
def interrupt(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, interrupt)
random.seed(1)
interrupts = 0
until = time.monotonic() + 2.5
while time.monotonic() < until:
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, random.uniform(0.00003, 0.0006))
            for inputs in (small, small, large, small):
                ask(inputs)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        interrupts += 1
        # By then it knows again what the model takes, which it asks for elsewhere.
        assert works(), "not after %d interrupts" % interrupts
assert interrupts > 50, interrupts
assert client._io._session.is_idle
end()
"""
_PREDICT = """
def ask(inputs):
    client.predict("echo", inputs)
"""
_SUBMIT = """
def ask(inputs):
    with contextlib.suppress(errors.Unavailable):
        future = client.submit("echo", inputs)
        while not future.done():
            pass
"""
# The interrupt comes just as the lock of a future's condition was taken: while a thread has it,
# the client's own thread waits for it.
_AS_IT_WAITS = """
entered = threading.Condition.__enter__
def enter(condition):
    entered(condition)
    if threading.current_thread() is threading.main_thread():
        raise KeyboardInterrupt
    return True

with mock.patch.object(threading.Condition, "__enter__", enter):
    with contextlib.suppress(KeyboardInterrupt):
        wait()
end()
"""
_STATS = """
wait = client.stats
"""
_RESULT = """
wait = lambda: client.submit("echo", x).result()
"""
_PREDICT_MANY = """
wait = lambda: client.predict_many("echo", [x, large])
"""
# The interrupt comes before the thread is woken.
_AS_IT_WAKES = """
written = os.eventfd_write
def write(*arguments):
    if threading.current_thread() is threading.main_thread():
        raise KeyboardInterrupt
    written(*arguments)

with mock.patch.object(os, "eventfd_write", write):
    while True:
        try:
            client.submit("echo", small)
        except KeyboardInterrupt:
            break
end()
"""


def run(server: Server, script: str, limit_s: float = 3.0) -> list[str]:
    """What a process says in the end; where it is when it takes longer than that."""
    command = [sys.executable, "-c", _PREAMBLE + script, server.endpoint, str(limit_s)]
    ended = subprocess.run(command, timeout=30, check=False, capture_output=True, text=True)
    return ended.stdout.splitlines() or ended.stderr.splitlines()[-20:]


@pytest.mark.parametrize("ask", [_PREDICT, _SUBMIT], ids=["predict", "submit"])
def test_ctrl_c_at_random_moments(server: Server, ask: str) -> None:
    assert run(server, ask + _RANDOM, limit_s=12.0) == ["works", "closes"]


@pytest.mark.parametrize(
    "wait", [_STATS, _RESULT, _PREDICT_MANY], ids=["stats", "result", "predict_many"]
)
def test_ctrl_c_as_it_begins_to_wait(server: Server, wait: str) -> None:
    assert run(server, wait + _AS_IT_WAITS) == ["works", "closes"]


def test_ctrl_c_as_the_thread_is_woken(server: Server) -> None:
    assert run(server, _AS_IT_WAKES) == ["works", "closes"]
