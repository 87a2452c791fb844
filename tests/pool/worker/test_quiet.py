"""What loads quietly takes few processors from others, and is itself again afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from batchyard.pool.worker import quiet

QUIET, USUAL = 19, os.getpriority(os.PRIO_PROCESS, 0)
# Without the rights of root, which needs no limit to come back.
AS_NOBODY = """
import os, resource
from batchyard.pool.worker import quiet
try:
    resource.setrlimit(resource.RLIMIT_NICE, ({soft}, {soft}))
except ValueError as error:
    raise SystemExit("cannot raise the limit") from error
os.setgid(65534)
os.setuid(65534)
with quiet.quietly():
    print(os.getpriority(os.PRIO_PROCESS, 0))
print(os.getpriority(os.PRIO_PROCESS, 0))
"""


def can_come_back() -> bool:
    return os.geteuid() == 0


@pytest.mark.skipif(not can_come_back(), reason="needs a user whose threads may be nice again")
def test_threads_begun_inside_are_quiet_until_the_end() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        assert go_on.wait(15)

    other = threading.Thread(target=go_on.wait, args=(15,))
    other.start()
    with quiet.quietly():
        inner = threading.Thread(target=work)
        inner.start()
        assert begun.wait(15)
        assert priorities(threading.main_thread(), inner, other) == [QUIET, QUIET, USUAL]
    assert priorities(threading.main_thread(), inner, other) == [USUAL] * 3
    go_on.set()
    for thread in (inner, other):
        thread.join()


def priorities(*threads: threading.Thread) -> list[int]:
    return [os.getpriority(os.PRIO_PROCESS, thread.native_id or 0) for thread in threads]


@pytest.mark.skipif(not can_come_back(), reason="needs a user whose threads may be nice again")
def test_a_load_that_fails_ends_the_quiet() -> None:
    with pytest.raises(ValueError, match="no"), quiet.quietly():
        raise ValueError("no")
    assert os.getpriority(os.PRIO_PROCESS, 0) == USUAL


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
@pytest.mark.parametrize(("soft", "inside"), [(0, USUAL), (19, USUAL), (20, QUIET), (40, QUIET)])
def test_only_who_can_come_back_goes(soft: int, inside: int) -> None:
    # -c: the folder that the tests run in may not be that user's to read.
    script = AS_NOBODY.format(soft=soft)
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    if "cannot raise the limit" in child.stderr:
        pytest.skip("this user may not raise RLIMIT_NICE")
    assert child.returncode == 0, child.stderr
    assert child.stdout.split() == [str(inside), str(USUAL)]
