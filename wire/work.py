"""The packets between the broker and a worker, over their link.

``docs/architecture.md`` draws who sends what. Each packet is a msgpack array whose first
element is its kind; a worker is our own process, so what it says is believed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from batchyard.wire.errors import shortened
from batchyard.wire.signatures import SignatureSpec


class Kind(IntEnum):
    """What a packet is."""

    READY = 1
    EXECUTE = 2
    DONE = 3
    FAILED = 4
    RELEASED = 5
    ATTACH = 6
    DETACH = 7
    RESUMED = 8
    UNLOAD = 9


# The memory that offsets count in: the arena, or else the region of that id.
ARENA = 0


# Batches that were run to warm up: padded rows, and seconds.
WarmupRuns = tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class SignatureReport:
    """A signature as a worker loaded it.

    ``output_row_nbytes`` is what warm-up saw of outputs for one row, in bytes, or None when the
    signature could not be warmed up. ``warmup_runs`` are those runs, but for the first of each
    size.
    """

    spec: SignatureSpec
    output_row_nbytes: int | None
    warmup_runs: WarmupRuns = ()


@dataclass(frozen=True, slots=True)
class ModelReport:
    """A model that a worker has loaded and warmed up.

    ``stateful`` says that a signature writes variables: such a model is served by one worker
    and never warmed up. ``bears_changing_inputs``: it may read them where a client has them.
    ``signature_def`` is the SavedModel's own word on its signatures, a serialized
    ``tensorflow.serving.SignatureDefMap``; empty where there is none.
    """

    name: str
    version: int
    stateful: bool
    bears_changing_inputs: bool
    signatures: tuple[SignatureReport, ...]
    load_s: float
    warmup_s: float
    signature_def: bytes = b""


@dataclass(frozen=True, slots=True)
class Ready:
    """The worker can take batches of these models."""

    device: str
    models: tuple[ModelReport, ...]

    def to_wire(self) -> list[Any]:
        """The packet."""
        models = [
            {
                "name": model.name,
                "version": model.version,
                "stateful": model.stateful,
                "bears_changing_inputs": model.bears_changing_inputs,
                "load_s": model.load_s,
                "warmup_s": model.warmup_s,
                "signatures": [
                    [report.spec.to_wire(), report.output_row_nbytes, report.warmup_runs]
                    for report in model.signatures
                ],
                "signature_def": model.signature_def,
            }
            for model in self.models
        ]
        return [Kind.READY, self.device, models]

    @classmethod
    def from_wire(cls, packet: list[Any]) -> Ready:
        """The message in a READY packet."""
        _, device, models = packet
        return cls(device, model_reports(models))


def model_reports(models: list[dict[str, Any]]) -> tuple[ModelReport, ...]:
    """The reports in the third element of a READY packet."""
    return tuple(
        ModelReport(
            name=model["name"],
            version=model["version"],
            stateful=model["stateful"],
            bears_changing_inputs=model["bears_changing_inputs"],
            load_s=model["load_s"],
            warmup_s=model["warmup_s"],
            signatures=tuple(
                SignatureReport(
                    SignatureSpec.from_wire(spec), nbytes, tuple((n, s) for n, s in runs)
                )
                for spec, nbytes, runs in model["signatures"]
            ),
            signature_def=model["signature_def"],
        )
        for model in models
    )


# (name, dtype, shape, memory, offset, nbytes) of an input.
PlacedInput = tuple[str, str, tuple[int, ...], int, int, int]
# (name, dtype, shape, offset, nbytes) of an output; offset None where it was not written, because
# every row of it went into a region.
PlacedOutput = tuple[str, str, tuple[int, ...], int | None, int]


@dataclass(slots=True)
class Execute:
    """Run a batch.

    Of ``padded_rows`` rows, ``rows`` are real. ``alone`` says that one request and no padding
    made the batch, so that its outputs are that request's, whatever their shapes.

    ``inputs`` has ``(name, dtype, shape, memory, offset, nbytes)`` of each input. ``memory`` is
    ARENA or the id of a region. Before, ``copies`` are to be made into the arena:
    ``(region, offset, arena offset, nbytes)``.

    ``block`` is the part of the arena that the batch lies in, ``(offset, nbytes)``. ``origins``
    says whose rows these are, in their order: ``(message_id, first, count, row_start, rows)`` of
    each part. The worker keeps both for a broker that does not know them (see ``Resumed``).

    ``request_ids`` are those that callers gave, for the log.

    Outputs may be written to ``output_nbytes`` bytes of the arena at ``output_offset``. Those of
    the rows in ``replies``, ``(region, offset, nbytes, first row, rows)`` for each request, are
    to be written there instead, if they fit (see ``protocol.reply_offsets``).
    """

    batch_id: int
    model: str
    version: int
    signature: str
    rows: int
    padded_rows: int
    alone: bool
    inputs: list[PlacedInput]
    copies: list[tuple[int, int, int, int]]
    output_offset: int
    output_nbytes: int
    replies: list[tuple[int, int, int, int, int]]
    block: tuple[int, int]
    origins: list[tuple[int, int, int, int, int]]
    request_ids: Sequence[str] = ()

    def to_wire(self) -> list[Any]:
        """The packet."""
        packet = [
            Kind.EXECUTE,
            self.batch_id,
            self.model,
            self.version,
            self.signature,
            self.rows,
            self.padded_rows,
            self.alone,
            self.inputs,
            self.copies,
            self.output_offset,
            self.output_nbytes,
            self.replies,
            self.block,
            self.origins,
        ]
        if self.request_ids:
            packet.append(self.request_ids)
        return packet

    @classmethod
    def from_wire(cls, packet: list[Any]) -> Execute:
        """The message in an EXECUTE packet."""
        return cls(*packet[1:])


@dataclass(slots=True)
class Done:
    """A batch ran.

    ``outputs`` has ``(name, dtype, shape, offset, nbytes)``, offsets counted from the start of
    the arena, or of the memfd that came with the packet when ``overflow``. ``replied`` says that
    the outputs of every request in ``Execute.replies`` that had room for them are there. ``kept``
    says that the model still holds on to the inputs: their block comes back with RELEASED.
    ``gather_s``: how long it took to copy rows out of regions.
    """

    batch_id: int
    outputs: list[PlacedOutput]
    overflow: bool
    replied: bool
    kept: bool
    execution_s: float
    gather_s: float = 0.0

    def to_wire(self) -> list[Any]:
        """The packet."""
        return [
            Kind.DONE,
            self.batch_id,
            self.outputs,
            self.overflow,
            self.replied,
            self.kept,
            self.execution_s,
            self.gather_s,
        ]

    @classmethod
    def from_wire(cls, packet: list[Any]) -> Done:
        """The message in a DONE packet."""
        return cls(*packet[1:])


@dataclass(slots=True)
class Failed:
    """A batch raised. ``number`` and ``message`` are those of ``wire.errors``."""

    batch_id: int
    number: int
    message: str
    kept: bool

    def to_wire(self) -> list[Any]:
        """The packet."""
        # Whatever a model put into it, it must be text that can be sent, to each of its clients.
        message = shortened(self.message.encode(errors="replace").decode())
        return [Kind.FAILED, self.batch_id, self.number, message, self.kept]

    @classmethod
    def from_wire(cls, packet: list[Any]) -> Failed:
        """The message in a FAILED packet."""
        return cls(*packet[1:])


@dataclass(slots=True)
class Released:
    """The model let go of the inputs of a batch that was answered as ``kept``."""

    batch_id: int

    def to_wire(self) -> list[Any]:
        """The packet."""
        return [Kind.RELEASED, self.batch_id]


@dataclass(slots=True)
class Attach:
    """A region that later batches may lie in; its descriptor is beside the packet."""

    region: int

    def to_wire(self) -> list[Any]:
        """The packet."""
        return [Kind.ATTACH, self.region]


@dataclass(slots=True)
class Detach:
    """The client of a region is gone: no later batch lies in it."""

    region: int

    def to_wire(self) -> list[Any]:
        """The packet."""
        return [Kind.DETACH, self.region]


@dataclass(slots=True)
class Resumed:
    """A worker's first packet to a broker that was started anew: what it still has of the last.

    ``batches`` are those that it was given and has not answered; their answers follow. ``kept``
    has ``(batch_id, block offset, block nbytes)`` of those that were answered and whose inputs a
    model still holds on to: RELEASED follows.
    """

    batches: list[Execute]
    kept: list[tuple[int, int, int]]

    def to_wire(self) -> list[Any]:
        """The packet."""
        return [Kind.RESUMED, [batch.to_wire() for batch in self.batches], self.kept]

    @classmethod
    def from_wire(cls, packet: list[Any]) -> Resumed:
        """The message in a RESUMED packet."""
        return cls([Execute.from_wire(batch) for batch in packet[1]], packet[2])


@dataclass(slots=True)
class Unload:
    """A version that is not served any more: no later batch is for it."""

    model: str
    version: int

    def to_wire(self) -> list[Any]:
        """The packet."""
        return [Kind.UNLOAD, self.model, self.version]

    @classmethod
    def from_wire(cls, packet: list[Any]) -> Unload:
        """The message in an UNLOAD packet."""
        return cls(*packet[1:])
