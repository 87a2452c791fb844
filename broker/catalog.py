"""What is served: models, their versions, and the lanes that requests for them wait in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from batchyard.broker.durations import Durations, Errors
from batchyard.broker.lane import Lane
from batchyard.broker.measures import Measures
from batchyard.broker.policy import NEVER, BatchingParameters
from batchyard.broker.target_inputs import check_input, declare, listed, match_inputs, row_shape
from batchyard.wire import dtypes
from batchyard.wire.arena import align
from batchyard.wire.errors import (
    STILL_LOADING,
    BatchyardError,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from batchyard.wire.protocol import Target
from batchyard.wire.signatures import SignatureSpec
from batchyard.wire.tensors import element_count
from batchyard.wire.work import ModelReport, WarmupRuns

# Lanes and routes are made by what clients send (row shapes); idle ones go when there are more.
_ROUTES_MAX = 4096
# Of the target that a route is remembered by. Longer ones are read anew each time.
_ROUTE_NBYTES_MAX = 16 * 1024


@dataclass(slots=True, eq=False)
class ServedModel:
    """One version of a model, and how it fares.

    ``is_current``: requests that name no version get it. ``retry`` says whether requests may run
    again after a worker died with them, or after their batch raised; None: unless the model
    writes state. ``error`` says why the version cannot be served, or is empty.
    """

    name: str
    version: int
    labels: tuple[str, ...]
    parameters: BatchingParameters
    is_current: bool = True
    retry: bool | None = None
    batch_execution_timeout_s: float = NEVER
    error: str = ""
    # Requests are refused, those that wait are answered, then it goes.
    is_retired: bool = False
    # No worker serves it, and none will.
    is_abandoned: bool = False
    stateful: bool = False
    # As workers loaded them. ``signature_def`` is for clients; nobody here looks into it.
    signatures: dict[str, SignatureSpec] = field(default_factory=dict)
    signature_def: bytes = b""
    output_row_nbytes: dict[str, int] = field(default_factory=dict)
    # Ids of workers that serve it. A stateful model keeps to the first of them.
    workers: list[int] = field(default_factory=list)
    in_execution: int = 0
    requests: int = 0
    batches: int = 0
    # How many batches had so many rows.
    batch_rows: Counter[int] = field(default_factory=Counter)
    queued_rows: int = 0
    # Parts of messages that batches of a broker before this one have.
    claimed_parts: int = 0
    # What share of the devices' time it has when there is not enough, beside the other models.
    share: float = 1.0
    # How long batches take, by signature and row shapes, then by kind of device.
    durations: dict[object, dict[str, Durations]] = field(default_factory=dict)
    # What workers ran to warm up, by signature and kind of device: padded rows and seconds.
    warmup_runs: dict[tuple[str, str], WarmupRuns] = field(default_factory=dict)
    errors: Errors = field(default_factory=Errors)
    # Seconds that devices ran for it, and of them for answers that were late.
    busy_s: float = 0.0
    late_s: float = 0.0
    # Rows that batches had beside their own, to have a size that is allowed.
    padding_rows: int = 0
    # By signature.
    measures: dict[str, Measures] = field(default_factory=dict)
    # Requests that missed their deadline, by why (see ``measures``); and that were shed because the
    # queue stood. When any were last refused or dropped because they would be late, or shed.
    misses: Counter[str] = field(default_factory=Counter)
    shed: int = 0
    shed_at: float = -NEVER
    # Whether it may be shown inputs where a client has them: it neither minds that they change
    # while it runs, nor holds on to them afterwards.
    reads_in_place: bool = True

    @property
    def state(self) -> str:
        """TensorFlow Serving's name for it."""
        if self.is_retired:
            return "UNLOADING"
        if self.workers:
            return "AVAILABLE"
        return "END" if self.error or self.is_abandoned else "LOADING"

    @property
    def may_retry(self) -> bool:
        """Whether requests may run again."""
        return not self.stateful if self.retry is None else self.retry

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits or runs."""
        return not (self.queued_rows or self.in_execution or self.claimed_parts)

    def configure(self, other: ServedModel) -> None:
        """Takes what the configuration says from ``other``, the same version."""
        self.labels = other.labels
        self.parameters = other.parameters
        self.is_current = other.is_current
        self.retry = other.retry
        self.share = other.share
        self.batch_execution_timeout_s = other.batch_execution_timeout_s
        self.error = other.error
        self.is_retired = False

    def signature(self, name: str) -> SignatureSpec | None:
        """A signature as it is served."""
        spec = self.signatures.get(name)
        if spec is not None and spec.batched and not self.parameters.enable_batching:
            return replace(spec, batched=False)
        return spec


@dataclass(slots=True, eq=False)
class Route:
    """What a target comes to: its lane, and how the message's inputs map to the signature's.

    ``order[i]`` is the place in the message of the signature's input ``i``; ``shapes[i]`` its
    shape, the first dimension None where the message counts the rows.
    """

    lane: Lane
    order: tuple[int, ...]
    shapes: tuple[tuple[int | None, ...], ...]
    # The shapes of one row.
    row_shapes: list[tuple[int, ...]] = field(default_factory=list)
    # Bytes of a row of each input, None for an input whose bytes have to be looked at; None for
    # all when the message does not count rows.
    row_nbytes: tuple[int | None, ...] | None = None
    # Whether the message has the signature's order.
    in_order: bool = False

    def __post_init__(self) -> None:
        self.in_order = self.order == tuple(range(len(self.order)))
        self.row_shapes = [tuple(dim or 0 for dim in shape[1:]) for shape in self.shapes]
        if not self.lane.signature.batched or any(shape[0] is not None for shape in self.shapes):
            return
        self.row_nbytes = tuple(
            None
            if spec.dtype in dtypes.CHECKED
            # Rows without bytes have rules of their own.
            else element_count([dim or 0 for dim in shape[1:]]) * dtypes.itemsize(spec.dtype)
            or None
            for spec, shape in zip(self.lane.signature.inputs, self.shapes, strict=True)
        )


class Catalog:
    """Finds the route of a target, or says what is wrong with it."""

    def __init__(self, arena_nbytes: int) -> None:
        # By name and version, those that are being retired as well.
        self.models: dict[tuple[str, int], ServedModel] = {}
        self.lanes: dict[tuple[object, ...], Lane] = {}
        self._routes: dict[bytes, Route] = {}
        self._arena_nbytes = arena_nbytes

    def add(self, model: ServedModel) -> None:
        """A model that the configuration names; not yet AVAILABLE."""
        self.models[model.name, model.version] = model
        self._routes.clear()

    def update(self, wanted: Iterable[ServedModel]) -> list[ServedModel]:
        """What is served from now on. What is not any more is returned: it is retired."""
        keys = set()
        for model in wanted:
            key = model.name, model.version
            keys.add(key)
            known = self.models.get(key)
            if known is None:
                self.models[key] = model
            else:
                known.configure(model)
        retired = [model for key, model in self.models.items() if key not in keys]
        for model in retired:
            model.is_retired = True
            model.is_current = False
        # What waits keeps the lane that it is in; what comes gets one by the new parameters.
        self._routes.clear()
        self.lanes.clear()
        return retired

    def forget(self, model: ServedModel) -> None:
        """A retired version that nothing waits for any more."""
        del self.models[model.name, model.version]

    def learn(self, report: ModelReport) -> None:
        """What a worker said of a version that is known here, though none may serve it now."""
        model = self.models[report.name, report.version]
        for signature in report.signatures:
            spec = signature.spec
            if model.signatures.get(spec.name, spec) != spec:
                self._routes.clear()
            model.signatures[spec.name] = spec
            model.measures.setdefault(spec.name, Measures())
            model.output_row_nbytes[spec.name] = signature.output_row_nbytes or 0
        model.signature_def = report.signature_def
        model.stateful = report.stateful
        # A variable may take an input's memory for its own.
        if report.stateful or not report.bears_changing_inputs:
            model.reads_in_place = False

    def worker_ready(self, worker_id: int, report: ModelReport, kind: str = "cpu") -> None:
        """A worker serves a version that is known here from now on, on that kind of device."""
        self.learn(report)
        model = self.models[report.name, report.version]
        for signature in report.signatures:
            model.warmup_runs[signature.spec.name, kind] = signature.warmup_runs
        for lane in self.lanes.values():
            if lane.model is model:
                _seed(lane)
        # At the end: a stateful model keeps to the worker that it is on.
        model.workers.append(worker_id)
        model.is_abandoned = False

    def worker_lost(self, worker_id: int) -> None:
        """A worker serves nothing any more."""
        for model in self.models.values():
            if worker_id in model.workers:
                model.workers.remove(worker_id)

    def abandon(self) -> None:
        """No worker is left, and none will come."""
        for model in self.models.values():
            model.is_abandoned = True

    def find(self, name: str, version: int | None, label: str | None) -> ServedModel:
        """The model that is served under a name and, if given, a version or a label.

        Raises NotFound when there is none, InvalidArgument for a label that no version has,
        Unavailable when no worker has served it yet, or none ever will again. While its workers
        are being replaced its requests wait.
        """
        model = self.named(name, version, label)
        where = f"model {name!r} version {model.version}"
        if model.error and not model.workers:
            raise Unavailable(f"{where} cannot be served: {model.error}")
        if model.is_abandoned:
            raise Unavailable(f"{where} has no worker left")
        if not model.signatures:
            raise Unavailable(f"{where} {STILL_LOADING}")
        return model

    def named(self, name: str, version: int | None, label: str | None) -> ServedModel:
        """The same, whether it can be used or not. Raises NotFound, InvalidArgument."""
        versions = self._versions(name)
        if version is not None:
            found = [model for model in versions if model.version == version]
        elif label is not None:
            found = [model for model in versions if label in model.labels]
        else:
            found = [model for model in versions if model.is_current] or versions[-1:]
        if not found:
            raise _nothing_found(versions, version, label)
        return found[0]

    def _versions(self, name: str) -> list[ServedModel]:
        """The versions of a model, increasing, without those that are being retired."""
        served = [model for model in self.models.values() if not model.is_retired]
        versions = [model for model in served if model.name == name]
        if not versions:
            names = listed(sorted({model.name for model in served}))
            raise NotFound(f"model {name!r} is not served here; served are {names}")
        return sorted(versions, key=lambda model: model.version)

    def route(self, encoded: bytes) -> Route:
        """The route of an encoded target; raises what ``find`` raises, and InvalidArgument."""
        route = self._routes.get(encoded)
        if route is None:
            if len(self._routes) >= _ROUTES_MAX:
                self._forget_idle()
            route = self._make_route(Target.decode(encoded))
            if len(encoded) <= _ROUTE_NBYTES_MAX:
                self._routes[encoded] = route
        elif route.lane.model.is_abandoned:
            self.find(route.lane.model.name, route.lane.model.version, None)
        return route

    def _forget_idle(self) -> None:
        self._routes.clear()
        self.lanes = {key: lane for key, lane in self.lanes.items() if lane.queued_rows}

    def _make_route(self, target: Target) -> Route:
        model = self.find(target.model, target.version, target.label)
        signature = model.signature(target.signature)
        if signature is None:
            raise NotFound(
                f"model {model.name!r} has no signature {target.signature!r}; it has "
                f"{listed(model.signatures)}"
            )
        where = f"model {model.name!r} signature {signature.name!r}"
        if signature.open:
            signature = declare(signature, target.inputs, where)
        order = match_inputs(signature, target.inputs, where)
        shapes = []
        for spec, place in zip(signature.inputs, order, strict=True):
            given = target.inputs[place]
            check_input(spec, given, signature, model.parameters, where)
            shapes.append(given.shape)
        lane = self._lane(model, signature, target.priority, shapes, where)
        return Route(lane, order, tuple(shapes))

    def _lane(
        self,
        model: ServedModel,
        signature: SignatureSpec,
        priority: int,
        shapes: list[tuple[int | None, ...]],
        where: str,
    ) -> Lane:
        row_shapes = tuple(
            row_shape(spec, shape, model.parameters)
            for spec, shape in zip(signature.inputs, shapes, strict=True)
        )
        if not signature.batched:
            row_shapes = ()
        key = (model.name, model.version, signature.name, signature.inputs, priority, row_shapes)
        lane = self.lanes.get(key)
        if lane is None:
            lane = self.lanes[key] = Lane(
                model=model,
                signature=signature,
                priority=priority,
                row_shapes=row_shapes,
                max_rows=self._max_rows(model, signature, row_shapes, shapes, where),
                batch_timeout_s=model.parameters.batch_timeout_micros / 1e6,
                output_row_nbytes=model.output_row_nbytes[signature.name],
                durations=_durations(model, signature, row_shapes),
            )
            _seed(lane)
        return lane

    def _max_rows(
        self,
        model: ServedModel,
        signature: SignatureSpec,
        row_shapes: tuple[tuple[int | None, ...], ...],
        shapes: list[tuple[int | None, ...]],
        where: str,
    ) -> int:
        """The most rows of which a batch fits into the arena, at most ``max_batch_size``.

        Where rows differ in length, and for strings, that is found out batch by batch.
        """
        if any(None in shape for shape in row_shapes):
            return model.parameters.max_batch_size
        row_nbytes = 0
        for spec, shape in zip(signature.inputs, shapes, strict=True):
            dims = shape[1:] if signature.batched else shape
            row_nbytes += element_count([dim or 0 for dim in dims]) * dtypes.itemsize(spec.dtype)
        parameters = model.parameters
        most = parameters.max_batch_size if signature.batched else 1
        sizes = parameters.allowed_batch_sizes if signature.batched else ()
        room = self._arena_nbytes - align(1) * len(signature.inputs)
        fitting = min(most, room // row_nbytes) if row_nbytes else most
        if sizes:
            fitting = max((size for size in sizes if size <= fitting), default=0)
        if fitting < 1:
            raise ResourceExhausted(
                f"{where}: a batch takes {(sizes or (1,))[0] * row_nbytes} bytes, the arena has "
                f"{self._arena_nbytes}; raise arena_mb under [pool]"
            )
        return fitting


def _durations(
    model: ServedModel, signature: SignatureSpec, row_shapes: tuple[tuple[int | None, ...], ...]
) -> dict[str, Durations]:
    """What is known of such batches: lanes of different priorities share it."""
    known, key = model.durations, (signature.name, row_shapes)
    if key not in known and len(known) >= _ROUTES_MAX:
        # Row shapes are made by clients.
        del known[next(iter(known))]
    return known.setdefault(key, {})


def _seed(lane: Lane) -> None:
    """The warm-up ran batches of the declared shapes, if they are not open."""
    declared = [(spec.shape or (None, None))[1:] for spec in lane.signature.inputs]
    if any(None in dims for dims in declared) or _sizes(lane.row_shapes or declared) != _sizes(
        declared
    ):
        return
    for (signature, kind), runs in lane.model.warmup_runs.items():
        if signature == lane.signature.name:
            durations = lane.durations.setdefault(kind, Durations())
            for rows, seconds in runs:
                durations.seed(rows, seconds)


def _sizes(row_shapes: Iterable[tuple[int | None, ...]]) -> list[int]:
    """Elements of each tensor in a row."""
    return [element_count([dim or 0 for dim in dims]) for dims in row_shapes]


def _nothing_found(
    versions: list[ServedModel], version: int | None, label: str | None
) -> BatchyardError:
    name = versions[0].name
    if version is not None:
        numbers = ", ".join(str(model.version) for model in versions)
        which = f"version {numbers} is" if len(versions) == 1 else f"versions {numbers} are"
        return NotFound(f"model {name!r} has no version {version} here; {which} served")
    labels = sorted(label for model in versions for label in model.labels)
    # As in TensorFlow Serving: labels are the configuration's, and do not come by themselves as
    # versions do.
    return InvalidArgument(
        f"model {name!r} has no version labelled {label!r}; labels are {listed(labels)}"
    )
