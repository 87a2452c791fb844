"""Whether what a broker counted of requests is how they were answered."""

from __future__ import annotations

from collections import Counter

from support.virtual_books import LEFT, VirtualBooks

from batchyard.broker.catalog import ServedModel
from batchyard.broker.measures import DROPPED, EXPIRED, REFUSED, Histogram


def assert_counted(broker: VirtualBooks) -> None:
    """Every request counts once, by its answer; once all are answered."""
    for model in broker.catalog.models.values():
        _assert_model_counted(broker, model)


def _assert_model_counted(broker: VirtualBooks, model: ServedModel) -> None:
    answers = Counter(
        answer
        for group, answers in broker.answers.items()
        if group.lane.model is model
        for answer in answers
    )
    codes: Counter[str | None] = Counter()
    request, queue, batches = 0, 0, 0
    for measures in model.measures.values():
        codes += measures.codes
        request += sum(measures.request.counts)
        queue += sum(measures.queue.counts)
        batches += sum(measures.execution.counts)
        assert not any(histogram.sum_s < 0 for histogram in _all(measures))
    assert codes["OK"] == answers["OK"] == request == queue
    assert batches <= model.batches
    # Who left was told nothing: what became of those requests is known to the broker alone.
    unheard = codes - answers
    assert unheard.total() == answers.pop(LEFT, 0)
    assert codes.total() == answers.total() + unheard.total()
    misses = sum(model.misses[why] for why in (REFUSED, DROPPED, EXPIRED))
    assert misses == codes["DEADLINE_EXCEEDED"]


def _all(measures: object) -> list[Histogram]:
    return [getattr(measures, name) for name in ("request", "queue", "execution")]
