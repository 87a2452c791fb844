"""What the supervisor and its children say to each other, over a real link."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchyard.wire import control
from batchyard.wire.control import BrokerSettings, ModelSettings, ModelSource, WorkerSettings
from batchyard.wire.link import Link

TEXT = st.text(max_size=6)
NUMBERS = st.integers(0, 1 << 60)
BATCHING = st.dictionaries(TEXT, NUMBERS | st.none() | st.booleans() | st.lists(NUMBERS))
SIGNATURES = st.none() | st.dictionaries(
    st.sampled_from(["inputs", "outputs"]),
    st.dictionaries(TEXT, st.fixed_dictionaries({"dtype": TEXT, "shape": st.lists(NUMBERS)})),
)
SECONDS = st.floats(0, allow_nan=False)
MODELS = st.builds(
    ModelSettings,
    TEXT,
    NUMBERS,
    st.lists(TEXT),
    BATCHING,
    st.booleans(),
    st.none() | st.booleans(),
    SECONDS,
    TEXT,
)
BROKERS = st.builds(
    BrokerSettings,
    st.lists(TEXT),
    *[NUMBERS] * 6,
    st.lists(MODELS, max_size=3),
    st.lists(NUMBERS),
)
SOURCES = st.builds(
    ModelSource, TEXT, NUMBERS, TEXT, TEXT, st.lists(NUMBERS), SIGNATURES, st.booleans()
)
WORKERS = st.builds(
    WorkerSettings,
    NUMBERS,
    NUMBERS,
    TEXT,
    st.none() | NUMBERS,
    st.booleans(),
    NUMBERS,
    NUMBERS,
    st.none() | st.lists(NUMBERS),
    NUMBERS,
    st.lists(SOURCES, max_size=3),
    st.booleans(),
)
# The link carries one packet at a time: examples may share it.
SHARES_LINK = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
DEADLINE_S = 10.0


@pytest.fixture
def ends() -> Iterator[tuple[Link, Link]]:
    a, b = Link.pair()
    yield a, b
    a.close()
    b.close()


def carried(ends: tuple[Link, Link], body: Any) -> Any:
    ends[0].send(body)
    return ends[1].receive()[0]


@SHARES_LINK
@given(broker=BROKERS)
def test_broker_settings(ends: tuple[Link, Link], broker: BrokerSettings) -> None:
    assert BrokerSettings.from_wire(carried(ends, broker.to_wire())) == broker


@SHARES_LINK
@given(worker=WORKERS)
def test_worker_settings(ends: tuple[Link, Link], worker: WorkerSettings) -> None:
    assert WorkerSettings.from_wire(carried(ends, worker.to_wire())) == worker


def test_kinds_travel_as_numbers(ends: tuple[Link, Link]) -> None:
    kinds = list(control.Kind)
    assert len(set(kinds)) == len(control.Kind.__members__)
    assert carried(ends, kinds) == [kind.value for kind in kinds]


def test_exit_codes_differ() -> None:
    codes = [value for name, value in vars(control).items() if name.startswith("EXIT_")]
    assert len(codes) == len(set(codes)) == 5
    # What a shell means by 0 and by 2.
    assert (control.EXIT_OK, control.EXIT_CONFIGURATION) == (0, 2)


def run(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_child_of_another_parent_exits_at_once() -> None:
    code = f"from batchyard.wire import control; control.die_with_parent({os.getpid()}); print(1)"
    with run(code) as child:
        assert child.stdout is not None
        assert child.stdout.read() == "1\n"
    assert child.returncode == 0
    with run(code.replace(str(os.getpid()), "1")) as orphan:
        assert orphan.stdout is not None
        assert orphan.stdout.read() == ""
    assert orphan.returncode == control.EXIT_FAILURE


def test_child_dies_with_its_parent() -> None:
    grandchild = (
        "import os, time; from batchyard.wire import control;"
        "control.die_with_parent(os.getppid()); print(os.getpid(), flush=True); time.sleep(100)"
    )
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}])"
    with run(code) as parent:
        assert parent.stdout is not None
        pidfd = os.pidfd_open(int(parent.stdout.readline()))
        try:
            parent.kill()
            # Readable once the process has ended.
            assert select.select([pidfd], [], [], DEADLINE_S)[0]
        finally:
            os.close(pidfd)
