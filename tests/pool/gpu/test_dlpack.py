"""Tensors handed over by DLPack: what others take of ours, and what is taken of theirs."""

from __future__ import annotations

import gc
import mmap
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from batchyard.pool.gpu import dlpack
from batchyard.wire import dtypes

_CPU = (dlpack.CPU, 0)
# What numpy cannot take, torch and JAX can.
_NOT_NUMPY = ("bfloat16", "float8_e5m2", "float8_e4m3fn")


class Producer:
    """Gives an array of this process away as a card's is given away, but for the device."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self.array = array
        self.kept = Kept()

    def __dlpack_device__(self) -> tuple[int, int]:
        return _CPU

    def __dlpack__(self, **_: object) -> object:
        array = self.array
        return dlpack.export(array.ctypes.data, array.shape, array.dtype, _CPU, self.kept)


class Kept:
    """Lives as long as the memory is needed."""


def aligned(shape: tuple[int, ...], name: str) -> np.ndarray[Any, Any]:
    """Zeros and ones at a multiple of 64 bytes."""
    dtype = dtypes.to_numpy(name)
    memory = np.zeros(1000, np.uint8)
    array = np.ndarray(shape, dtype, memory, -memory.ctypes.data % 64)
    array[...] = np.arange(array.size).reshape(shape) % 2
    return array


@pytest.mark.parametrize("shape", [(), (5,), (0, 3), (2, 3)], ids=str)
@pytest.mark.parametrize("consumer", ["numpy", "torch", "jax.dlpack"])
def test_others_take_it_in_place(
    consumer: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The card, if there is one, is not wanted here.
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    from_dlpack: Callable[[Any], Any] = pytest.importorskip(consumer).from_dlpack
    for name in dtypes.NAMES[:-1]:
        if consumer == "numpy" and name in _NOT_NUMPY:
            continue
        if consumer == "jax.dlpack" and name.endswith(("64", "128")) and name != "complex64":
            continue
        producer = Producer(aligned(shape, name))
        expected = producer.array.tolist()
        taken = from_dlpack(producer)
        kept = weakref.ref(producer.kept)
        del producer
        assert kept() is not None, name
        assert name in str(taken.dtype)
        assert taken.tolist() == expected
        del taken
        if kept() is not None:
            gc.collect()
        assert kept() is None, name


def test_what_nobody_took_is_let_go_of() -> None:
    producer = Producer(aligned((3,), "float32"))
    kept = weakref.ref(producer.kept)
    capsule = producer.__dlpack__()
    del producer
    assert kept() is not None
    # On another thread.
    box = [capsule]
    del capsule
    thread = threading.Thread(target=box.clear)
    thread.start()
    thread.join(10)
    assert kept() is None


def test_memory_is_not_touched() -> None:
    unreadable = mmap.mmap(-1, mmap.PAGESIZE, prot=0)
    pointer = np.frombuffer(unreadable, np.uint8).__array_interface__["data"][0]
    for shape in ((), (0,), (4,), (2, 3)):
        capsule = dlpack.export(pointer, shape, np.dtype(np.float32), (dlpack.CUDA, 0), None)
        foreign, _ = dlpack.take(Gives(capsule), 1)
        assert (foreign.pointer, foreign.shape, foreign.dtype) == (pointer, shape, "float32")
        assert foreign.is_dense


class Gives:
    """A producer of one capsule, or one that raises."""

    def __init__(
        self, capsule: object, device: tuple[int, int] = (2, 0), *, with_stream: bool = True
    ) -> None:
        self._capsule = capsule
        self._device = device
        self._with_stream = with_stream

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device

    def __dlpack__(self, *, stream: int | None = None) -> object:
        if stream is not None and not self._with_stream:
            raise RuntimeError("tf.Tensor does not support DLPack export with a non-None stream")
        if isinstance(self._capsule, Exception):
            raise self._capsule
        return self._capsule


def test_streams_are_asked_for_where_they_can_be() -> None:
    capsule = Producer(aligned((3,), "int8")).__dlpack__()
    assert dlpack.take(Gives(capsule), 7)[1]
    assert not dlpack.take(Gives(capsule, with_stream=False), 7)[1]
    assert not dlpack.take(WithoutStreams(capsule), 7)[1]


class WithoutStreams(Gives):
    """Knows no streams."""

    def __dlpack__(self) -> object:  # type: ignore[override]
        return super().__dlpack__()


def test_why_a_tensor_cannot_be_had() -> None:
    error = BufferError("Can't export tensors that require gradient, use tensor.detach()")
    with pytest.raises(dlpack.NotExported, match=r"use tensor\.detach"):
        dlpack.take(Gives(error), 7)
    with pytest.raises(dlpack.NotExported, match=r"use tensor\.detach"):
        dlpack.describe(Gives(error))
    with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"):
        dlpack.take(Gives(RuntimeError("RESOURCE_EXHAUSTED: Out of memory")), 7)
    with pytest.raises(dlpack.NotExported, match="device 1 of DLPack's type 2"):
        dlpack.is_on_card(Gives(None, (2, 1)))
    with pytest.raises(dlpack.NotExported, match="type 10"):
        dlpack.is_on_card(Gives(None, (10, 0)))
    capsule = Producer(aligned((3,), "float32")).__dlpack__()
    dlpack._tensor(capsule).dtype.lanes = 4
    with pytest.raises(dlpack.NotExported, match="code 2 of 32 bits and 4 lanes"):
        dlpack.take(Gives(capsule), 7)
    with pytest.raises(BufferError, match="no type for object"):
        dlpack.export(0, (1,), np.dtype(object), _CPU, None)


def test_where_a_tensor_lies() -> None:
    assert dlpack.is_on_card(Gives(None))
    assert dlpack.is_on_card(Gives(None, (13, 0)))
    assert not dlpack.is_on_card(np.zeros(3))
    assert not dlpack.is_on_card([1, 2])
    assert not dlpack.is_on_card(Gives(None, (3, 0)))


@pytest.mark.parametrize(
    ("array", "is_dense"),
    [
        (np.zeros((2, 3)), True),
        (np.zeros((2, 3)).T, False),
        (np.zeros((2, 3))[:, :2], False),
        (np.zeros((1, 3)).T, True),
        (np.zeros((5, 3))[1:3], True),
        (np.broadcast_to(np.zeros(3), (2, 3)).copy(), True),
        (np.lib.stride_tricks.as_strided(np.zeros(3), (2, 3), (0, 8)), False),
        (np.zeros((3, 0, 2)).T, True),
    ],
)
def test_density(array: np.ndarray[Any, Any], is_dense: bool) -> None:
    foreign, _ = dlpack.take(WithoutStreams(array.__dlpack__()), 7)
    assert foreign.is_dense == is_dense
    assert (foreign.shape, foreign.nbytes) == (array.shape, array.size * 8)
    assert dlpack.describe(array) == ("float64", array.shape)
