"""JAX's networks, with random weights: the same for the bare loop and for the worker.

Written with JAX alone: ResNet50 is v1.5, with its normalizations as what they are without training,
a factor and an offset.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_STAGES = ((3, 64), (4, 128), (6, 256), (3, 512))
_EXPANSION = 4
# Of each block's last normalization: without training, sums over 16 blocks would leave float16.
_LAST_SCALE = 0.25
Array = Any


def build(name: str, precision: str) -> Callable[[Array], Array]:
    """A function of rows as clients send them, float32, to float32; compiled for each shape."""
    dtype = jnp.dtype(precision)
    network = _resnet50 if name == "resnet50" else _mlp
    parameters = _Parameters(dtype)
    # The first time through, it makes its weights; the second, it takes them as arguments.
    jax.eval_shape(lambda x: network(parameters, x), jnp.zeros(_EXAMPLES[name], dtype))
    weights = [jax.device_put(weight) for weight in parameters.made]

    def call(weights: list[Array], x: Array) -> Array:
        return network(_Taken(weights), x.astype(dtype)).astype(jnp.float32)

    compiled = jax.jit(call)
    return lambda x: compiled(weights, x)


_EXAMPLES = {"resnet50": (1, 224, 224, 3), "mlp": (1, 784)}


class JaxLoop:
    """See ``bare_loop.Loop``."""

    def __init__(self, name: str, precision: str, **_: Any) -> None:
        self.call = build(name, precision)

    def put(self, host: np.ndarray[Any, Any]) -> Array:
        return jax.device_put(host)

    def fetch(self, y: Array) -> np.ndarray[Any, Any]:
        return np.asarray(y)

    def synchronize(self, y: Array) -> None:
        y.block_until_ready()


def limit_memory(fraction: float) -> None:
    """It is the environment's to say, before JAX is imported."""


def versions() -> dict[str, str]:
    """What JAX is, and what it runs on; ``device`` is the card that it sees."""
    found = {"version": jax.__version__}
    card = jax.devices()[0]
    found["cuda"] = str(card.client.platform_version).replace("\n", " ")
    if card.platform == "gpu":
        found["device"] = card.device_kind
    return found


class _Parameters:
    """Makes weights in the order in which a network asks for them."""

    def __init__(self, dtype: Any) -> None:
        self._rng = np.random.default_rng(0)
        self._dtype = dtype
        self.made: list[Array] = []

    def weight(self, *shape: int) -> Array:
        scale = np.sqrt(2 / np.prod(shape[:-1]))
        return self._add(scale * self._rng.standard_normal(shape, np.float32))

    def constant(self, value: float, size: int) -> Array:
        return self._add(np.full(size, value, np.float32))

    def _add(self, array: np.ndarray[Any, Any]) -> Array:
        self.made.append(array.astype(self._dtype))
        return self.made[-1]


class _Taken:
    """The same weights again, as arguments of what is compiled."""

    def __init__(self, weights: list[Array]) -> None:
        self._weights = iter(weights)

    def weight(self, *shape: int) -> Array:
        return next(self._weights)

    def constant(self, value: float, size: int) -> Array:
        return next(self._weights)


def _mlp(parameters: Any, x: Array) -> Array:
    for i, (rows, columns) in enumerate(((784, 512), (512, 512), (512, 10))):
        x = x @ parameters.weight(rows, columns) + parameters.constant(0, columns)
        x = jax.nn.relu(x) if i < 2 else x
    return x


def _resnet50(parameters: Any, x: Array) -> Array:
    x = jax.nn.relu(_convolution(parameters, x, 64, 7, 2))
    padding = ((0, 0), (1, 1), (1, 1), (0, 0))
    # After relu nothing is below 0.
    x = lax.reduce_window(x, x.dtype.type(0), lax.max, (1, 3, 3, 1), (1, 2, 2, 1), padding)
    for stage, (blocks, channels) in enumerate(_STAGES):
        for block in range(blocks):
            x = _block(parameters, x, channels, 2 if stage and not block else 1)
    x = x.mean((1, 2))
    return x @ parameters.weight(x.shape[-1], 1000) + parameters.constant(0, 1000)


def _block(parameters: Any, x: Array, channels: int, stride: int) -> Array:
    out = channels * _EXPANSION
    y = jax.nn.relu(_convolution(parameters, x, channels, 1, 1))
    y = jax.nn.relu(_convolution(parameters, y, channels, 3, stride))
    y = _convolution(parameters, y, out, 1, 1, _LAST_SCALE)
    if stride > 1 or x.shape[-1] != out:
        x = _convolution(parameters, x, out, 1, stride)
    return jax.nn.relu(x + y)


def _convolution(
    parameters: Any, x: Array, channels: int, size: int, stride: int, scale: float = 1.0
) -> Array:
    x = lax.conv_general_dilated(
        x,
        parameters.weight(size, size, x.shape[-1], channels),
        (stride, stride),
        [(size // 2, size // 2)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return x * parameters.constant(scale, channels) + parameters.constant(0, channels)
