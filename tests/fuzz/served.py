"""What a broker serves while it is fuzzed: models of every kind that admission tells apart."""

from __future__ import annotations

from functools import cache

from support.broker_builders import OPEN, make_model, make_report, make_signature

from batchyard.broker.catalog import Catalog
from batchyard.broker.queue import Region
from batchyard.wire.signatures import SignatureSpec
from batchyard.wire.work import ModelReport

ARENA_NBYTES = 1 << 14
REGION_NBYTES = 1 << 12
Y = ("y", "float32", (None,))


def _signatures() -> list[SignatureSpec]:
    """Several signatures of one model: numbers, strings, open dimensions, none."""
    inputs = {
        "serving_default": (("x", "float32", (None, 2)),),
        "scalars": (("x", "int64", (None,)),),
        "pair": (("a", "float32", (None, 2)), ("b", "string", (None,))),
        "matrix": (("s", "string", (None, 2)),),
        "bools": (("x", "bool", (None, 3)),),
        "sequence": (("x", "bfloat16", (None, None)),),
        "line": (("x", "float64", (None, 1)),),
        "any": (("x", "uint8", None),),
        "both": (("x", "float32", (None, None)), ("s", "string", (None, None))),
        "fixed": (("x", "float32", (3, 2)),),
        "fixed_strings": (("s", "string", (2,)),),
        "free": (("x", "complex64", ()), ("y", "int8", (None, 4))),
    }
    made = [make_signature(specs, (Y,), name=name) for name, specs in inputs.items()]
    nothing = make_signature((), (("y", "float32", ()),), name="nothing")
    return [*made, nothing, make_signature((), (), name="open", is_open=True)]


@cache
def fuzzed_reports() -> tuple[ModelReport, ...]:
    """What the worker says that serves them."""
    signatures = _signatures()
    return (
        make_report(*signatures, name="m"),
        make_report(*signatures, name="padded"),
        make_report(*signatures, name="alone"),
        make_report(OPEN, name="whole"),
    )


def make_fuzzed_catalog(*, is_served: bool = True) -> Catalog:
    """``m``; ``padded``, to allowed sizes and lengths; ``alone``, never batched; ``whole``, whose
    large requests are not split; ``loading``, which no worker serves yet."""
    catalog = Catalog(ARENA_NBYTES)
    catalog.add(make_model("m"))
    catalog.add(
        make_model(
            "padded",
            allowed_batch_sizes=(2, 4),
            pad_variable_length_inputs=True,
            length_buckets=(2, 8),
        )
    )
    catalog.add(make_model("alone", enable_batching=False))
    catalog.add(make_model("whole", enable_large_batch_splitting=False))
    catalog.add(make_model("loading"))
    for report in fuzzed_reports() if is_served else ():
        catalog.worker_ready(0, report)
    return catalog


def make_fuzzed_region() -> Region:
    """A client's memory, all of whose bytes tell where they are."""
    return Region(1, memoryview(bytearray(i * 7 % 251 for i in range(REGION_NBYTES))))
