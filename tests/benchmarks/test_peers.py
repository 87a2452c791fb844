"""``batchyard bench peers``, with peers that are there, that fail, and that are not installed."""

from __future__ import annotations

import ast
import contextlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from batchyard.benchmarks.peers import catalog, comparison, environments, theirs
from batchyard.benchmarks.peers.catalog import PEERS, Peer
from batchyard.benchmarks.peers.contestant import Contestant, ContestantFailed
from batchyard.benchmarks.peers.formats import Octets
from batchyard.benchmarks.peers.workloads import WORKLOADS, Workload
from batchyard.benchmarks.results import Figure
from batchyard.benchmarks.table import table

SUPPORT = Path(__file__).parent.parent / "support"
REQUIREMENTS = Path(catalog.__file__).parent / "requirements"
BY_NAME = {workload.name: workload for workload in WORKLOADS}
FEW = replace(BY_NAME["small"], in_flight=(4, 8))
# Installed wherever tests run.
A_PACKAGE = "pytest"


@pytest.fixture
def stubs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[Peer]]:
    """A peer that works and one that does not start; nothing is left of them."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(catalog, "_SERVERS", SUPPORT)
    yield [
        Peer("stub", "Stub", A_PACKAGE, Octets("/")),
        Peer("missing_script", "Crashing", A_PACKAGE, Octets("/")),
    ]
    assert not list(folder.iterdir())


def test_peers_that_fail_or_are_not_there_are_skipped(stubs: list[Peer]) -> None:
    absent = Peer("absent", "Absent", "batchyard-has-no-such-peer", Octets("/"))
    results = comparison.run(0.05, 2, [*stubs, absent], [FEW])

    ways = ("bare", "submit", "async", "predict_many", "rest", "grpc", "stub")
    for key in (f"small.{way}" for way in ways):
        assert len(results.measured[key]) == 2
        assert min(results.measured[key]) > 0
    assert results.machine["Stub"]
    assert results.skipped["Absent"] == comparison.NOT_INSTALLED
    crashed = results.skipped["one-row requests: Crashing"]
    assert "ended while it started" in crashed
    assert "missing_script_server.py" in crashed
    assert "skipped Absent: not installed" in table(results)


@pytest.mark.parametrize("workload", [FEW, BY_NAME["latency"]], ids=lambda w: w.name)
def test_peer_is_measured(stubs: list[Peer], tmp_path: Path, workload: Workload) -> None:
    outputs = [row / 2 + 2 for row in workload.rows()]
    with contextlib.ExitStack() as stack:
        (found,) = theirs.contestants(stack, stubs[0], workload, tmp_path, outputs)
        assert found.measure(0.02) > 0
        assert found.measure(0.02) > 0


def test_peer_with_wrong_answers_fails(stubs: list[Peer], tmp_path: Path) -> None:
    outputs = FEW.rows()
    with contextlib.ExitStack() as stack:
        (found,) = theirs.contestants(stack, stubs[0], FEW, tmp_path, outputs)
        with pytest.raises(ContestantFailed, match="is right"):
            found.measure(0.02)


def test_peer_that_fails_later_has_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = iter([5.0])

    def measure(seconds: float) -> float:
        try:
            return next(rounds)
        except StopIteration:
            raise ContestantFailed("it crashed") from None

    stage = comparison._Stage(BY_NAME["small"], 0.0, 3)
    good = Contestant("good", "Good", lambda seconds: 1.0)
    measured = stage._rounds([good, Contestant("bad", "Bad", measure)])
    assert measured == {"small.good": [1.0] * 3}
    assert stage._skipped == {"one-row requests: Bad": "it crashed"}


def contestant(key: str) -> Contestant:
    """One that is not measured."""
    return Contestant(key, key.title(), lambda seconds: 0.0)


def figures(workload: Workload) -> list[Figure]:
    """Those of two ways of ours, mosec and another peer."""
    own = [contestant("submit"), contestant("async")]
    others = [contestant("mosec"), contestant("other")]
    return list(comparison.figures(workload, contestant("bare"), own, others))


def test_figures_are_beside_bare_tensorflow_and_beside_every_peer() -> None:
    found = [(f.key, f.reference, f.goal) for f in figures(BY_NAME["small"])]
    assert found == [
        ("small.bare", None, None),
        ("small.submit", "small.bare", None),
        ("small.async", "small.bare", None),
        ("small.mosec", "small.bare", None),
        ("small.other", "small.bare", None),
        ("small.submit", "small.mosec", 2.0),
        ("small.async", "small.mosec", 2.0),
        ("small.submit", "small.other", 5.0),
    ]


@pytest.mark.parametrize(
    ("name", "to_mosec", "to_others"),
    [("small", 2.0, 5.0), ("latency", None, 0.2), ("tensors", 5.0, 5.0), ("compute", None, None)],
)
def test_goals(name: str, to_mosec: float | None, to_others: float | None) -> None:
    goals = {figure.reference: figure.goal for figure in figures(BY_NAME[name])}
    assert goals[f"{name}.mosec"] == to_mosec
    assert goals[f"{name}.other"] == to_others
    assert all(f.lower_is_better is (name == "latency") for f in figures(BY_NAME[name]))


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_rows_of_a_workload(workload: Workload) -> None:
    rows = workload.rows()
    assert len(rows) == max(workload.in_flight, default=1)
    assert {row.shape for row in rows} == {(1, *workload.row_shape)}
    assert {row.nbytes for row in rows} == {workload.row_nbytes}
    assert all(np.array_equal(a, b) for a, b in zip(rows, workload.rows(), strict=True))
    assert len({row.tobytes() for row in rows}) == len(rows)


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_every_peer_has_its_script_and_its_version(peer: Peer) -> None:
    assert peer.script.is_file()
    needs = (REQUIREMENTS / f"{peer.name}.txt").read_text().splitlines()
    assert any(line.startswith(peer.distribution) and "==" in line for line in needs)


def test_scripts_run_where_batchyard_is_not_installed() -> None:
    for path in PEERS[0].script.parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                modules.append(node.module)
            assert not [name for name in modules if name.startswith("batchyard")], path


def test_only_large_rows_go_by_shared_memory() -> None:
    (triton,) = [peer for peer in PEERS if peer.shared_memory is not None]
    ways = {workload.name: [*triton.formats(workload.is_large)] for workload in WORKLOADS}
    assert ways["tensors"] == ["pytriton", "pytriton_shared_memory"]
    assert {name for name, keys in ways.items() if len(keys) > 1} == {"tensors"}


def test_peer_has_its_own_environment_or_ours(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(environments.FOLDER_VARIABLE, raising=False)
    assert environments.python("mosec") == sys.executable
    for folder in (".venv-peers", "elsewhere"):
        own = tmp_path / folder / "mosec" / "bin" / "python"
        own.parent.mkdir(parents=True)
        own.symlink_to(sys.executable)
    assert environments.python("mosec") == str(tmp_path / ".venv-peers/mosec/bin/python")
    monkeypatch.setenv(environments.FOLDER_VARIABLE, "elsewhere")
    assert environments.python("mosec") == str(tmp_path / "elsewhere/mosec/bin/python")


def test_version_of_a_peer() -> None:
    assert environments.version("stub", A_PACKAGE) == pytest.__version__
    assert environments.version("stub", "batchyard-has-no-such-peer") is None
