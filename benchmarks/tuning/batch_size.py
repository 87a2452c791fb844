"""Where batches run, and how large they may become."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from batchyard.benchmarks.table import number
from batchyard.benchmarks.tuning.bench import (
    VERY_HIGH_TIMEOUT_MICROS,
    Deadline,
    Placement,
    Setting,
)
from batchyard.benchmarks.tuning.contest import Verdict
from batchyard.benchmarks.tuning.curve import Curve
from batchyard.benchmarks.tuning.tuner import GoalOutOfReach, Tuner

# Of what is expected of the best: smaller batches that reach it have everybody wait less.
_NEARLY = 0.98
# What is expected to reach less is not tried.
_HOPELESS = 0.7
_CHALLENGERS = 3
# A placement that is expected to reach this much of the best is tried once more.
_ABOUT = 0.85
_BULK_CHALLENGERS = 2


def choose_placement(tuner: Tuner) -> None:
    """Workers, and batches that each runs at once; each placement with batches that suit it."""
    bench = tuner.lab.bench
    before = len(tuner.contest.verdicts)
    for placement in bench.placements:
        if tuner.contest.champion is not None and not tuner.lab.has_time:
            break
        tuner.measure_curve(placement)
        first = _candidates(tuner, placement)[0]
        tuner.lab.step = "batch threads"
        _enter(tuner, first)
    _check_reach(tuner)
    _choose_threads_of_fixed(tuner)
    verdicts = tuner.contest.verdicts[before:]
    champion = tuner.champion
    tuner.chose(
        "num_batch_threads",
        champion.threads,
        _why_placement(tuner, verdicts, bench.placements),
        verdicts,
    )


def _choose_threads_of_fixed(tuner: Tuner) -> None:
    """Where the workers are given: whether fewer of them at once do better."""
    bench = tuner.lab.bench
    champion = tuner.champion
    if len(bench.placements) == 1 and champion.threads > 1 and bench.device == "cpu":
        half = replace(champion, num_batch_threads=champion.threads // 2)
        tuner.contest.challenge(half)


def choose_batch_size(tuner: Tuner) -> None:
    """``max_batch_size``, with the timeout that the guide wants meanwhile."""
    before = len(tuner.contest.verdicts)
    tuner.lab.step = "max_batch_size"
    threads = tuner.champion.num_batch_threads
    for setting in (*_elsewhere(tuner), *_candidates(tuner, tuner.champion.placement)):
        setting = replace(setting, num_batch_threads=threads)
        if setting not in [verdict.setting for verdict in tuner.contest.verdicts]:
            tuner.contest.challenge(setting)
    verdicts = tuner.contest.verdicts[before:]
    chosen = tuner.champion.max_batch_size
    tuner.chose("max_batch_size", chosen, _why_size(tuner, verdicts), verdicts)


def _elsewhere(tuner: Tuner) -> list[Setting]:
    """On another placement that promises about as much, one more size: it may have had bad luck."""
    champion = tuner.champion
    found = []
    for placement in tuner.lab.bench.placements:
        if placement == champion.placement or placement not in tuner.curves:
            continue
        rivals = _candidates(tuner, placement)[:3]
        least = _ABOUT * tuner.expected_rate(champion)
        tried = [verdict.setting for verdict in tuner.contest.verdicts]
        found += [s for s in rivals if tuner.expected_rate(s) >= least and s not in tried][:1]
    return found


def _enter(tuner: Tuner, setting: Setting) -> None:
    tuner.contest.enter(setting, tuner.likely_rate(setting))
    at_once = replace(setting, batch_timeout_micros=0)
    if not tuner.contest.rate and setting != at_once:
        # Batches that wait for as long as they can are late when they run a little longer.
        tuner.may_wait = False
        tuner.contest.enter(at_once, tuner.likely_rate(at_once))


def _check_reach(tuner: Tuner) -> None:
    """Raises GoalOutOfReach when no placement comes to anything."""
    if not tuner.contest.rate:
        verdict = tuner.contest.verdicts[-1]
        share = f"{100 * verdict.load.in_time_share:.1f} %" if verdict.load else "nothing"
        raise GoalOutOfReach(
            f"at the lowest rate that was tried {share} was in time: the deadline leaves too "
            f"little beside {number(1e3 * tuner.curve.seconds(tuner.rows))} ms for a batch of one "
            "request; see the plot of execution times"
        )


def _candidates(tuner: Tuner, placement: Placement) -> list[Setting]:
    """Settings worth a measurement: the most promising, its rivals, and the guide's large one."""
    curve = tuner.curves[placement]
    settings = {rows: _starting(tuner, placement, rows) for rows in _sizes(tuner, curve)}
    expected = {rows: tuner.expected_rate(setting) for rows, setting in settings.items()}
    best = max(expected.values())
    promising = sorted(rows for rows in settings if expected[rows] >= _HOPELESS * best)
    first = next(rows for rows in promising if expected[rows] >= _NEARLY * best)
    rivals = sorted(promising, key=lambda rows: -expected[rows])
    # Next to each other they say the same; the largest is what the guide begins with on a CPU.
    chosen = [first, *_apart([max(settings), *_around(first, promising), *rivals], first)]
    challengers = _CHALLENGERS if isinstance(tuner.goal, Deadline) else _BULK_CHALLENGERS
    return [settings[rows] for rows in chosen[: 1 + challengers]]


def _starting(tuner: Tuner, placement: Placement, rows: int) -> Setting:
    """On a CPU nothing waits; on a GPU a batch waits until it is full, while its size is sought."""
    waits = tuner.lab.bench.device == "gpu" and tuner.may_wait
    timeout = VERY_HIGH_TIMEOUT_MICROS if waits else 0
    return Setting(placement, rows, batch_timeout_micros=timeout)


def _sizes(tuner: Tuner, curve: Curve) -> list[int]:
    """Those that were measured, and those half way between."""
    between = [
        rows * 3 // 2 for rows in curve.sizes[:-1] if rows * 3 // 2 % tuner.rows == 0 and rows > 1
    ]
    sizes = sorted({*curve.sizes, *between})
    if isinstance(tuner.goal, Deadline):
        deadline_s = tuner.goal.deadline_s
        sizes = [rows for rows in sizes if curve.seconds(rows) < deadline_s]
    return sizes


def _around(first: int, sizes: Sequence[int]) -> list[int]:
    return [rows for rows in sizes if rows in (2 * first, first // 2)]


def _apart(sizes: Iterable[int], *taken: int) -> list[int]:
    """Each once, without those within a quarter of one that is there already."""
    found = list(taken)
    for rows in sizes:
        if all(max(rows, other) >= 1.25 * min(rows, other) for other in found):
            found.append(rows)
    return found[len(taken) :]


def _why_placement(
    tuner: Tuner, verdicts: Sequence[Verdict], placements: Sequence[Placement]
) -> str:
    champion = tuner.champion
    if len(placements) == 1:
        return (
            f"{placements[0]}, as given: {champion.threads} batch"
            f"{'es' if champion.threads > 1 else ''} at once."
        )
    others = _others(verdicts, champion)
    guide = "as the guide says" if champion.placement == placements[0] else "not the guide's start"
    cores = f"{tuner.lab.bench.cores} cores"
    where = cores if tuner.lab.bench.device == "cpu" else "the GPU"
    return (
        f"{champion.placement} on {where} ({guide}) reach {number(tuner.contest.rate)}/s; {others}."
    )


def _why_size(tuner: Tuner, verdicts: Sequence[Verdict]) -> str:
    curve, chosen = tuner.curve, tuner.champion.max_batch_size
    alone_ms = number(1e3 * curve.seconds(tuner.rows))
    first = (
        f"A batch of {chosen} takes {number(1e3 * curve.seconds(chosen))} ms "
        f"({number(curve.rows_per_s(chosen))} rows/s; one request alone {alone_ms} ms)"
    )
    others = _others(verdicts, tuner.champion)
    if not others:
        return f"{first}; no other size promised more."
    return f"{first} and reaches {number(tuner.contest.rate)}/s; {others}."


def _others(verdicts: Sequence[Verdict], champion: Setting) -> str:
    """The rivals and what they came to, in a few words."""
    texts = []
    untried = 0
    for verdict in verdicts:
        setting = verdict.setting
        if verdict.load is None:
            untried += 1
            continue
        if (setting.placement, setting.max_batch_size, setting.threads) == (
            champion.placement,
            champion.max_batch_size,
            champion.threads,
        ):
            continue
        name = (
            str(setting.max_batch_size)
            if setting.placement == champion.placement and setting.threads == champion.threads
            else f"{setting.placement}, {setting.threads} at once"
        )
        texts.append(f"{name}: {verdict.words}")
    if untried:
        texts.append(f"{untried} more not tried for want of time")
    return "; ".join(texts)
