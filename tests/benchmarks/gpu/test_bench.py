"""``batchyard bench gpu``: its parts, and a whole run with a function that sleeps for a card."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from support.simulated_card import simulated_card

from batchyard.benchmarks.failures import BenchmarkFailed
from batchyard.benchmarks.gpu import bench as gpu_bench
from batchyard.benchmarks.gpu import offline, online, sharing, transfers
from batchyard.benchmarks.gpu.feeding import rate
from batchyard.benchmarks.gpu.guarded import describe
from batchyard.benchmarks.gpu.options import Options, find_card
from batchyard.benchmarks.gpu.subjects import (
    FRAMEWORKS,
    NETWORKS,
    PRECISIONS,
    Group,
    function_name,
    groups,
    network_of,
    served_model,
)
from batchyard.benchmarks.gpu.tolerance import run_tolerant_rounds
from batchyard.benchmarks.results import Figure
from batchyard.benchmarks.served import configuration
from batchyard.cli import bench
from batchyard.pool.config import validate
from batchyard.pool.inventory import VisibleDevice

CARD = VisibleDevice(0, "GPU-1", "a card", 81_920, "GPU-1")


def options(card: VisibleDevice | None = CARD, **changes: Any) -> Options:
    """As the command line has them, but short."""
    usual = Options(
        device="gpu:0",
        seconds=0.05,
        repeat=2,
        batch=64,
        deadline_s=0.015,
        clients=1,
        workers=(1, 2),
        card=card,
    )
    return replace(usual, **changes)


def all_groups(xla: Sequence[bool] = (True, False)) -> list[Group]:
    return groups([*FRAMEWORKS], [*NETWORKS], PRECISIONS, xla)[0]


def figures_of(group: Group, how: Options) -> list[Figure]:
    parts = frozenset(("offline", "latency"))
    return [
        *offline.figures(how, group, parts),
        *online.figures(how, group),
        *sharing.figures(how, group),
    ]


@pytest.mark.parametrize("group", all_groups(), ids=lambda group: group.key)
def test_every_way_is_a_configuration(group: Group) -> None:
    exported = Path("/models/it") if group.framework == "tensorflow" else None
    batching = {"max_batch_size": 64, "allowed_batch_sizes": [1, 64]}
    models = [served_model(group, variant, batching, exported) for variant in group.variants]
    text = configuration(models, 2, options().worker(group, 0.4), {"arena_mb": 600})
    config = validate(tomllib.loads(text), "benchmark")
    for variant, model in zip(group.variants, config.models, strict=True):
        assert model.device_arrays is variant.way.device_arrays
        assert model.jit_compile is (variant.xla and group.framework == "tensorflow")
    (workers,) = config.pool.workers
    # A function that sleeps is never on the card.
    assert workers.device == (CARD.uuid if group.on_card else "cpu")
    assert workers.per_process_gpu_memory_fraction == (0.4 if group.on_card else None)


def test_names_of_functions_tell_what_they_are() -> None:
    for network in NETWORKS:
        for precision in PRECISIONS:
            assert network_of(function_name(network, precision)) == (network, precision)
    # What a module is asked for by hasattr().
    with pytest.raises(AttributeError, match="resnet50_int4"):
        network_of("resnet50_int4")


def test_keys_and_references_are_there() -> None:
    seen: dict[str, str] = {}
    for group in all_groups():
        lines = figures_of(group, options())
        keys = {line.key for line in lines}
        for line in lines:
            assert line.reference is None or line.reference in keys
            assert seen.setdefault(line.key, group.key) == group.key


def test_goals_are_for_cards() -> None:
    def goals(card: VisibleDevice | None, framework: str) -> set[float]:
        chosen, _ = groups([framework], ["resnet50"], ["float16"], [True, False])
        lines = (line for group in chosen for line in figures_of(group, options(card)))
        return {line.goal for line in lines if line.goal is not None}

    assert goals(CARD, "pytorch") == {0.98, 0.9, 0.95, 0.05}
    assert goals(None, "pytorch") == set()
    # What the harness and the server can do at all is to be seen anywhere.
    assert goals(None, "sleeper") == {0.98}


def test_what_xla_leaves_no_choice_of_is_told() -> None:
    found, skipped = groups(["pytorch", "jax", "tensorflow"], ["mlp"], ["float32"], [True])
    assert [group.framework for group in found] == ["jax", "tensorflow"]
    assert "never" in skipped["pytorch"]
    assert "always" in groups(["jax"], ["mlp"], ["float32"], [False])[1]["jax"]


@given(
    steps=st.integers(2, 40),
    at_once=st.integers(1, 8),
    cut=st.integers(0, 7),
    offset=st.floats(0, 1),
    period=st.floats(0.001, 0.5),
)
def test_rate_is_that_of_whole_batches(
    steps: int, at_once: int, cut: int, offset: float, period: float
) -> None:
    # The last batch is cut by the end, wherever that is.
    times = [offset + period * step for step in range(steps) for _ in range(at_once)]
    times += [offset + period * steps] * min(cut, at_once - 1)
    found = rate(times[::-1], 0.0, 1e9, at_once)
    assert found == pytest.approx(at_once / period, rel=1e-6)


def test_rate_does_not_see_what_comes_before_and_after() -> None:
    slow_then_fast = [0.0, 1.0, 2.0, 3.0, 3.1, 3.2, 3.3, 3.4, 5.0, 9.0]
    assert rate(slow_then_fast, 3.0, 3.45, 1) == pytest.approx(10)
    # But rather what comes after than nothing.
    assert rate([0.0, 4.0, 6.0], 1.0, 3.0, 1) == pytest.approx(0.5)
    with pytest.raises(BenchmarkFailed, match="--seconds"):
        rate([4.0], 1.0, 3.0, 1)


def test_largest_batch_leaves_two_of_it_in_time() -> None:
    assert online.candidates(64) == [16, 24, 32, 48, 64]
    assert online.candidates(1) == [1]
    assert online.allowed_sizes(32) == [1, 4, 8, 12, 16, 20, 24, 28, 32]
    assert online.allowed_sizes(2) == [1, 2]
    times = {size: 0.0002 * size for size in online.candidates(64)}
    assert online.largest_in_time(times, 0.015) == 32
    assert online.largest_in_time(times, 0.0001) == 16


def test_one_failure_leaves_the_others() -> None:
    turns: list[str] = []

    def ends_in_the_second_round() -> Mapping[str, float]:
        turns.append("fails")
        if len(turns) > 1:
            raise BenchmarkFailed("no memory")
        return {"fails": 1.0}

    measurements = {"bad": ends_in_the_second_round, "good": lambda: {"works": 2.0}}
    measured, skipped = run_tolerant_rounds(measurements, 3)
    assert measured == {"works": [2.0, 2.0, 2.0]}
    assert skipped == {"bad": "BenchmarkFailed: no memory"}
    assert turns == ["fails"] * 2


def test_an_error_is_told_in_a_line() -> None:
    group = ExceptionGroup("some", [ValueError("this\n  and that")])
    assert describe(group) == "ValueError: this and that"


def test_card_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert find_card("cpu") is None
    with pytest.raises(BenchmarkFailed, match="--device cpu tries"):
        find_card("gpu:0")


def test_transfers_on_a_simulated_card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("cuda.bindings.driver")
    cards = simulated_card(tmp_path, total_mb=1024)
    for name, value in cards.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(transfers, "SIZES", {"0.6 MB": 602_112})
    how = options(VisibleDevice(0, cards.uuids[0], "a card", 1024, cards.uuids[0]))
    measured, skipped = transfers.measure(how)
    assert not skipped
    lines = [*transfers.figures()]
    assert measured.keys() == {line.key for line in lines}
    assert all(value > 0 for values in measured.values() for value in values)
    assert {line.goal for line in lines if "arena" in line.key} == {0.95}
    assert not cards.used()


def test_whole_run_without_a_card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    # What is written after a part is there if the next one ends the process.
    found = tmp_path / "gpu.json"
    short = ["--seconds", "0.1", "--repeat", "1", "--batch", "8", "--json", str(found)]
    parts = ["--only", "offline", "--only", "latency", "--only", "transfers"]
    chosen = ["--device", "cpu", "--framework", "sleeper", "--model", "mlp"]
    shown = CliRunner().invoke(bench.command, ["gpu", *chosen, *parts, *short])
    assert shown.exit_code == 0, shown.output
    assert gpu_bench.NO_CARD in shown.output
    results = json.loads(found.read_text())
    assert results["skipped"] == {
        "transfers": "BenchmarkFailed: there is no bus to a card without a card"
    }
    measured = results["measured"]
    bare = measured["sleeper_mlp_float32_bare_plain_resident"]
    for what in ("batches", "singles"):
        (served,) = measured[f"sleeper_mlp_float32_host_plain_{what}"]
        assert 0 < served <= 1.5 * bare[0]
    assert measured["sleeper_mlp_float32_host_plain_p50"][0] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["gpu.json"]
