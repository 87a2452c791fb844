"""Everything at once, and one at a time: each way to be served beside the bare loop.

The bare loop and the server are there at the same time, and work in turn: a card gives a process
that does nothing none of its time. All of a group's ways are models of one server, so that each
round has all of them within a few seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from batchyard.benchmarks.failures import BenchmarkFailed
from batchyard.benchmarks.gpu.bare import BareLoop
from batchyard.benchmarks.gpu.feeding import Feeders
from batchyard.benchmarks.gpu.guarded import describe
from batchyard.benchmarks.gpu.options import FRACTION, Options
from batchyard.benchmarks.gpu.server import serving
from batchyard.benchmarks.gpu.subjects import Group, Variant, served_model
from batchyard.benchmarks.gpu.tolerance import FAILURES, Found, run_tolerant_rounds
from batchyard.benchmarks.results import Figure

GOAL = 0.98
# The goal is for batches so large; smaller ones are more overhead.
_GOAL_BATCH = 64
# Float16, summed in another order.
_RELATIVE, _ABSOLUTE = 0.05, 0.02
Measure = Callable[[], Mapping[str, float]]


def figures(options: Options, group: Group, parts: frozenset[str]) -> Iterator[Figure]:
    """The lines of a group."""
    for xla in group.xla:
        yield from _bare_figures(options, group, parts, xla)
    for variant in group.variants:
        yield from _served_figures(options, group, parts, variant)


def _bare_figures(
    options: Options, group: Group, parts: frozenset[str], xla: bool
) -> Iterator[Figure]:
    name = f"{group.title}{', XLA' if xla else ''}, bare loop"
    key = partial(group.bare_key, xla=xla)
    if "offline" in parts:
        title = f"{name}, inputs on the device, batch {options.batch}"
        yield Figure(key("resident"), title, "images/s")
        yield Figure(key("host_to_host"), f"{name}, host to host", "images/s", key("resident"))
        yield Figure(key("whole"), f"{name}, a batch", "µs", lower_is_better=True)
        title = f"{name}, of it the launch on the host"
        yield Figure(key("launch"), title, "µs", key("whole"), lower_is_better=True)
    if "latency" in parts:
        title = f"{name}, one row host to host, p50"
        yield Figure(key("p50"), title, "µs", lower_is_better=True)


def _served_figures(
    options: Options, group: Group, parts: frozenset[str], variant: Variant
) -> Iterator[Figure]:
    name = f"{group.title}, {variant.title}"
    key = partial(group.served_key, variant=variant)
    bare = partial(group.bare_key, xla=variant.xla)
    if "offline" in parts:
        goal = _offline_goal(options, group, variant)
        for what, title in (
            ("batches", f"requests of {options.batch}"),
            ("singles", "requests of 1"),
        ):
            title = f"{name}, {title}"
            yield Figure(key(what), title, "images/s", bare("resident"), goal)
        title = f"{name}, requests of {options.batch}"
        yield Figure(key("batches"), title, "images/s", bare("host_to_host"))
        beside = _same_on_host(group, variant)
        if beside is not None:
            title = f"{name}, requests of {options.batch}: transfers overlap"
            yield Figure(key("batches"), title, "images/s", group.served_key("batches", beside))
    if "latency" in parts:
        title = f"{name}, unloaded p50 of one row"
        yield Figure(key("p50"), title, "µs", bare("p50"), lower_is_better=True)


def _offline_goal(options: Options, group: Group, variant: Variant) -> float | None:
    """A card's is the best way's; what a function does that sleeps is the harness' own."""
    if group.network.name != "resnet50" or options.batch < _GOAL_BATCH:
        return None
    if not group.on_card:
        return GOAL
    return GOAL if variant.way.device_arrays and options.card is not None else None


def _same_on_host(group: Group, variant: Variant) -> Variant | None:
    """The same without device_arrays."""
    if not variant.way.device_arrays:
        return None
    others = (v for v in group.variants if not v.way.device_arrays and v.xla == variant.xla)
    return next(others, None)


def measure(options: Options, group: Group, exported: Path | None, parts: frozenset[str]) -> Found:
    """All lines of a group; why one is not there, by its name."""
    sizes = sorted({1, options.batch})
    batching = {"max_batch_size": options.batch, "allowed_batch_sizes": sizes}
    models = [served_model(group, variant, batching, exported) for variant in group.variants]
    shape = (options.batch, *group.network.row)
    skipped: dict[str, str] = {}
    measurements: dict[str, Measure] = {}
    with (
        BareLoop(group.framework, options.visible_to(group), FRACTION) as bare,
        Feeders(options.clients) as feeders,
    ):
        for xla in group.xla:
            bare.load(str(xla), group, xla, options.batch, exported)
        with serving(models, options, group) as endpoint:
            feeders.connect(endpoint, shape)
            for variant in group.variants:
                try:
                    _check(bare, feeders, variant)
                except FAILURES as error:
                    skipped[f"{group.title}, {variant.title}"] = describe(error)
                    continue
                measurements |= _variant(options, group, variant, parts, bare, feeders)
            measured, failed = run_tolerant_rounds(measurements, options.repeat)
    return measured, skipped | failed


def _variant(
    options: Options,
    group: Group,
    variant: Variant,
    parts: frozenset[str],
    bare: BareLoop,
    feeders: Feeders,
) -> dict[str, Measure]:
    """The measurements of a way, and those of the bare loop that it stands beside."""
    seconds, reference = options.seconds, str(variant.xla)
    key = partial(group.served_key, variant=variant)
    bare_key = partial(group.bare_key, xla=variant.xla)
    found: dict[str, Measure] = {}

    def served(what: str, rows: int) -> Measure:
        return lambda: {key(what): feeders.rows_per_s(variant.key, rows, seconds)}

    def looped(what: str) -> Measure:
        return lambda: {bare_key(what): bare.rows_per_s(what, reference, seconds)}

    def launched() -> Mapping[str, float]:
        launch = bare.launch_us(reference)
        return {bare_key("launch"): launch["host"], bare_key("whole"): launch["whole"]}

    if "offline" in parts:
        # Of a reference that two ways share the later one takes its place: it is measured once.
        found[bare_key("resident")] = looped("resident")
        found[bare_key("host_to_host")] = looped("host_to_host")
        found[bare_key("launch")] = launched
        found[key("batches")] = served("batches", options.batch)
        found[key("singles")] = served("singles", 1)
    if "latency" in parts:
        found[bare_key("p50")] = lambda: {bare_key("p50"): bare.p50_us(reference, seconds / 2)}
        found[key("p50")] = lambda: {key("p50"): feeders.p50_us(variant.key, seconds / 2)}
    return found


def _check(bare: BareLoop, feeders: Feeders, variant: Variant) -> None:
    """Both have the same network, or they are not to be compared."""
    expected = bare.first_answer(str(variant.xla))
    found = feeders.first_answer(variant.key)
    scale = max(map(abs, expected))
    if not np.allclose(found, expected, _RELATIVE, _ABSOLUTE * scale):
        raise BenchmarkFailed(
            f"{variant.title} answers {found[:4]}…, the bare loop {expected[:4]}…"
        )
