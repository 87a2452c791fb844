"""What the report draws: the same chart holds all results, each in its colour."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice

from batchyard.benchmarks.load.charts import Chart, Line
from batchyard.benchmarks.load.histogram import Histogram
from batchyard.benchmarks.load.result import Interval, LoadResult
from batchyard.benchmarks.svg import BAD, INK, SERIES
from batchyard.benchmarks.table import number

Results = Mapping[str, LoadResult]
# More points than these say no more at this size: neighbours are put together.
_MOST_POINTS = 400
_QUANTILE_TICKS = {1 / (1 - q): text for q, text in ((0, "0"), (0.5, "50"), (0.9, "90 %"))}
_QUANTILE_TICKS |= {
    10.0**nines: f"99{'.' if nines > 2 else ''}{'9' * (nines - 2)} %" for nines in range(2, 7)
}
_QUANTILES_A_DECADE = 24
_DASHED, _DOTTED = "--", ":"
_THIN = 1.1


def charts(results: Results) -> list[Chart]:
    """Those that have something to show."""
    drawn = (
        _latency_over_time,
        _latency_by_quantile,
        _goodput,
        _not_in_time,
        _batch_sizes,
        _batches_over_time,
        _queue,
    )
    return [chart for make in drawn if not (chart := make(results)).empty]


def _latency_over_time(results: Results) -> Chart:
    lines = []
    for name, colour, result in _coloured(results):
        intervals = thinned(result.intervals)
        times = [interval.t for interval in intervals]
        p50 = [_ms(interval.p50_s) for interval in intervals]
        p99 = [_ms(interval.p99_s) for interval in intervals]
        lines += [
            Line(_label(results, name, "p99"), times, p99, colour),
            Line(_label(results, name, "p50"), times, p50, colour, _DASHED, _THIN),
        ]
    end = max(result.duration_s for result in results.values())
    lines += [
        Line(f"deadline {number(s * 1e3)} ms", [0, end], [s * 1e3] * 2, INK, _DOTTED, _THIN)
        for s in _deadlines(results)
    ]
    return Chart(
        "latency",
        "Latency over time, by planned send time",
        "s",
        "ms",
        lines,
        _described(
            results, "latency p99", lambda r: f"{number(r.latency.quantile(0.99) * 1e3)} ms"
        ),
    )


def _latency_by_quantile(results: Results) -> Chart:
    lines = []
    for name, colour, result in _coloured(results):
        for what, histogram, style in (
            ("latency", result.latency, "-"),
            ("send lag", result.send_lag, _DASHED),
        ):
            if histogram.count:
                x, y = quantile_curve(histogram)
                width = _THIN if style == _DASHED else 1.6
                lines.append(Line(_label(results, name, what), x, y, colour, style, width))
    longest = max((line.x[-1] for line in lines), default=1.0)
    lines += [
        Line(f"deadline {number(s * 1e3)} ms", [1, longest], [s * 1e3] * 2, INK, _DOTTED, _THIN)
        for s in _deadlines(results)
    ]
    return Chart(
        "quantiles",
        "Latency that a share of the answers does not pass",
        "of all answers",
        "ms",
        lines,
        _described(
            results, "latency p99.9", lambda r: f"{number(r.latency.quantile(0.999) * 1e3)} ms"
        ),
        x_ticks={x: text for x, text in _QUANTILE_TICKS.items() if x <= max(longest, 10)},
    )


def _goodput(results: Results) -> Chart:
    lines = []
    for name, colour, result in _coloured(results):
        times, in_time = _rates(result, lambda interval: interval.in_time)
        _, sent = _rates(result, lambda interval: interval.sent)
        lines += [
            Line(_label(results, name, "in time"), times, in_time, colour),
            Line(_label(results, name, "sent"), times, sent, colour, _DASHED, _THIN),
        ]
    text = _described(results, "goodput", lambda r: f"{number(r.goodput)} a second")
    return Chart("goodput", "Requests a second: sent, and in time", "s", "requests/s", lines, text)


def _not_in_time(results: Results) -> Chart:
    lines = []
    for name, colour, result in _coloured(results):
        kinds: dict[str, Callable[[Interval], int]] = {}
        if len(results) == 1:
            kinds["late"] = lambda interval: interval.late
            kinds |= {code: _errors(code) for code in sorted(result.errors)}
            colours = iter((BAD, *SERIES, *SERIES))
        else:
            kinds["late or failed"] = lambda i: i.late + sum(i.errors.values())
            colours = iter([colour])
        for kind, count in kinds.items():
            times, rate = _rates(result, count)
            if any(rate):
                lines.append(Line(_label(results, name, kind), times, rate, next(colours)))
    text = _described(results, "late", lambda r: f"{r.late}, failed {sum(r.errors.values())}")
    return Chart("failures", "Requests a second: not in time", "s", "requests/s", lines, text)


def _batch_sizes(results: Results) -> Chart:
    lines = []
    for name, colour, result in _coloured(results):
        total = sum(result.batch_rows.values())
        if total:
            rows = sorted(result.batch_rows)
            shares = [100 * result.batch_rows[row] / total for row in rows]
            lines.append(Line(name, rows, shares, colour))
    text = _described(results, "mean batch", lambda r: f"{number(mean_batch_rows(r) or 0)} rows")
    title = "Batches by their number of rows"
    return Chart("batches", title, "rows", "% of the batches", lines, text, marked=True)


def _batches_over_time(results: Results) -> Chart:
    title = "Rows of a batch, mean"
    return _over_time(results, "batch-means", title, lambda interval: interval.batch_rows)


def _queue(results: Results) -> Chart:
    title = "Rows that wait in the server"
    return _over_time(results, "queue", title, lambda interval: interval.queue_rows)


def _over_time(
    results: Results, name: str, title: str, value: Callable[[Interval], float | None]
) -> Chart:
    lines = []
    for label, colour, result in _coloured(results):
        intervals = thinned(result.intervals)
        values = [value(interval) for interval in intervals]
        if any(v is not None for v in values):
            lines.append(Line(label, [interval.t for interval in intervals], values, colour))
    return Chart(name, title, "s", "rows", lines)


def mean_batch_rows(result: LoadResult) -> float | None:
    """Of the batches that the server formed; None where it does not tell."""
    batches = sum(result.batch_rows.values())
    rows = sum(rows * count for rows, count in result.batch_rows.items())
    return rows / batches if batches else None


def quantile_curve(histogram: Histogram) -> tuple[list[float], list[float]]:
    """1/(1 - q), in equal steps of its logarithm up to the last answer, and milliseconds."""
    xs = []
    x = 1.0
    while x < histogram.count:
        xs.append(x)
        x *= 10 ** (1 / _QUANTILES_A_DECADE)
    ys = [histogram.quantile(1 - 1 / x) for x in xs]
    return [*xs, float(histogram.count)], [y * 1e3 for y in (*ys, histogram.max)]


def thinned(intervals: Sequence[Interval]) -> list[Interval]:
    """At most some hundred: counts of neighbours are added; of p50, queues and batches the mean, of
    p99 the worst."""
    group = -(-len(intervals) // _MOST_POINTS)
    if group <= 1:
        return list(intervals)
    parts = iter(intervals)
    return [_merged(part) for part in iter(lambda: list(islice(parts, group)), [])]


def _merged(part: list[Interval]) -> Interval:
    codes = sorted({code for interval in part for code in interval.errors})
    p99 = [interval.p99_s for interval in part if interval.p99_s is not None]
    return replace(
        part[0],
        sent=sum(interval.sent for interval in part),
        in_time=sum(interval.in_time for interval in part),
        late=sum(interval.late for interval in part),
        errors={code: sum(i.errors.get(code, 0) for i in part) for code in codes},
        p50_s=_mean(interval.p50_s for interval in part),
        p99_s=max(p99, default=None),
        queue_rows=_mean(interval.queue_rows for interval in part),
        batch_rows=_mean(interval.batch_rows for interval in part),
    )


def _mean(values: Iterator[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _rates(
    result: LoadResult, count: Callable[[Interval], int]
) -> tuple[list[float], list[float | None]]:
    """When, and how many a second."""
    intervals = thinned(result.intervals)
    times = [interval.t for interval in intervals]
    ends = [*times[1:], result.duration_s]
    # The last one may be cut short, and tell nothing.
    widths = [end - start for start, end in zip(times, ends, strict=True)]
    least = min(result.plan.interval_s, result.duration_s) / 2
    rates = [
        count(interval) / width if width >= least else None
        for interval, width in zip(intervals, widths, strict=True)
    ]
    return times, rates


def _coloured(results: Results) -> Iterator[tuple[str, str, LoadResult]]:
    for i, (name, result) in enumerate(results.items()):
        yield name, SERIES[i % len(SERIES)], result


def _label(results: Results, name: str, what: str) -> str:
    return what if len(results) == 1 else f"{name}: {what}"


def _errors(code: str) -> Callable[[Interval], int]:
    return lambda interval: interval.errors.get(code, 0)


def _deadlines(results: Results) -> list[float]:
    return sorted({d for r in results.values() if (d := r.plan.deadline_s) is not None})


def _described(results: Results, what: str, text: Callable[[LoadResult], str]) -> str:
    return "; ".join(f"{name}: {what} {text(result)}" for name, result in results.items())


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3
