"""What is measured: networks of a framework at a precision, and the ways to serve them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchyard.benchmarks.served import Model

FRAMEWORKS = {
    "sleeper": "sleeper",
    "tensorflow": "TensorFlow",
    "pytorch": "PyTorch",
    "jax": "JAX",
}
PRECISIONS = ("float32", "float16")
# What a sleeper takes for a row: ResNet50's 5,000 images/s, and what shows small rows' overhead.
SLEEP_S = {"resnet50": 0.0002, "mlp": 0.00002}


@dataclass(frozen=True, slots=True)
class Network:
    """Rows of float32, of a shape, in; as many float32 out as it has classes. The MLP's layers have
    784, 512, 512 and 10."""

    name: str
    title: str
    row: tuple[int, ...]
    classes: int


NETWORKS = {
    "resnet50": Network("resnet50", "ResNet50", (224, 224, 3), 1000),
    "mlp": Network("mlp", "MLP", (784,), 10),
}


@dataclass(frozen=True, slots=True)
class Way:
    """How the worker calls a model: a SavedModel by session, or as tf.function with device_arrays;
    a python function with arrays of the host, or with device_arrays."""

    key: str
    title: str
    device_arrays: bool


_SESSION = Way("session", "session", False)
_HOST = Way("host", "host arrays", False)
_DEVICE = Way("device", "device_arrays", True)
_WAYS = {
    "sleeper": (_HOST,),
    "tensorflow": (_SESSION, _DEVICE),
    "pytorch": (_HOST, _DEVICE),
    "jax": (_HOST, _DEVICE),
}
# Whether XLA compiles: what a framework leaves to choose.
_XLA = {"sleeper": (False,), "tensorflow": (False, True), "pytorch": (False,), "jax": (True,)}


@dataclass(frozen=True, slots=True)
class Variant:
    """One way, with XLA or without."""

    way: Way
    xla: bool

    @property
    def key(self) -> str:
        """What the server calls the model."""
        return f"{self.way.key}_{_xla_key(self.xla)}"

    @property
    def title(self) -> str:
        """For a line of the table."""
        return f"{self.way.title}{', XLA' if self.xla else ''}"


@dataclass(frozen=True, slots=True)
class Group:
    """One network of one framework at one precision: what is interleaved, and compared."""

    framework: str
    network: Network
    precision: str
    xla: tuple[bool, ...]

    @property
    def key(self) -> str:
        """In the results' keys."""
        return f"{self.framework}_{self.network.name}_{self.precision}"

    @property
    def title(self) -> str:
        """For a line of the table."""
        return f"{FRAMEWORKS[self.framework]} {self.network.title} {self.precision}"

    @property
    def on_card(self) -> bool:
        """Whether it would run on a card: a sleeper runs on the CPU."""
        return self.framework != "sleeper"

    @property
    def variants(self) -> tuple[Variant, ...]:
        """Every way, with XLA and without, as far as both are wanted."""
        return tuple(Variant(way, xla) for way in _WAYS[self.framework] for xla in self.xla)

    @property
    def chief(self) -> Variant:
        """The one that is measured where not all are: by device_arrays, where there is that."""
        return max(self.variants, key=lambda v: (v.way.device_arrays, v.xla))

    def bare_key(self, what: str, xla: bool) -> str:
        """Of what the bare loop measured."""
        return f"{self.key}_bare_{_xla_key(xla)}_{what}"

    def served_key(self, what: str, variant: Variant) -> str:
        """Of what was measured through the broker."""
        return f"{self.key}_{variant.key}_{what}"


def _xla_key(xla: bool) -> str:
    return "xla" if xla else "plain"


def groups(
    frameworks: Sequence[str],
    networks: Sequence[str],
    precisions: Sequence[str],
    xla: Sequence[bool],
) -> tuple[list[Group], dict[str, str]]:
    """What there is to measure of these; and why nothing of some, by framework."""
    found: list[Group] = []
    skipped: dict[str, str] = {}
    for framework in frameworks:
        choices = tuple(choice for choice in _XLA[framework] if choice in xla)
        # A sleeper has nothing to compile, and no precision.
        if framework == "sleeper":
            choices = _XLA[framework]
        if not choices:
            always = "always" if _XLA[framework][0] else "never"
            skipped[framework] = f"XLA {always} compiles it here, and --xla asks for something else"
            continue
        at = precisions if framework != "sleeper" else PRECISIONS[:1]
        found += [
            Group(framework, NETWORKS[name], precision, choices)
            for name in networks
            for precision in at
        ]
    return found, skipped


def function_name(network: str, precision: str) -> str:
    """What a framework's served models call a network at a precision."""
    return f"{network}_{precision}"


def network_of(function: str) -> tuple[str, str]:
    """The network and the precision that are called so. Raises AttributeError, as modules do."""
    network, _, precision = function.rpartition("_")
    if network not in NETWORKS or precision not in PRECISIONS:
        raise AttributeError(function)
    return network, precision


def served_model(
    group: Group, variant: Variant, batching: dict[str, Any], exported: Path | None
) -> Model:
    """How a server is told of it. ``exported``: the SavedModel's folder, for TensorFlow."""
    settings: dict[str, Any] = {}
    if variant.way.device_arrays:
        settings["device_arrays"] = True
    if exported is not None:
        if variant.xla:
            settings["jit_compile"] = True
        return Model(variant.key, str(exported), batching, settings=settings)
    module = f"batchyard.benchmarks.gpu.models.{group.framework}_served"
    return Model(
        variant.key,
        f"{module}:{function_name(group.network.name, group.precision)}",
        batching,
        inputs={"x": ("float32", (-1, *group.network.row))},
        outputs={"y": ("float32", (-1, group.network.classes))},
        settings=settings,
    )
