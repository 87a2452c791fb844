"""DLPack: how frameworks hand each other tensors in place.

The structures are those of ``dlpack.h`` (https://github.com/dmlc/dlpack), the manners those of its
Python specification (https://dmlc.github.io/dlpack/latest/python_spec.html). What the frameworks
do with it, as read in PyTorch 2.13, JAX 0.10 to 0.12, CuPy 14 and TensorFlow 2.21:

- All take a ``"dltensor"``, the unversioned kind, also when they say ``max_version=(1, 0)``, and it
  is the only kind that TensorFlow and, before 0.12, JAX know. So that is what is made here.
- All take strides that are NULL for a dense row-major tensor.
- PyTorch passes its current stream, 1 for the default one; CuPy 1, 2 or a stream's address; JAX a
  stream that its own wait for. TensorFlow passes none, and none may be asked for of its tensors.
- PyTorch refuses tensors that require grad, with BufferError. JAX takes -1 for a stream's address.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from batchyard.wire import dtypes

CPU = 1
CUDA = 2
# Memory that the processor reads as its own: kDLCPU, kDLCUDAHost.
_ON_HOST = frozenset({CPU, 3})
# kDLCUDA, kDLCUDAManaged.
_ON_CARD = frozenset({CUDA, 13})


class _Device(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("id", ctypes.c_int32))


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    """DLTensor, with which DLManagedTensor begins."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_INT, _UINT, _FLOAT, _BFLOAT, _COMPLEX, _BOOL = 0, 1, 2, 4, 5, 6
# (code, bits) by the name on the wire.
_TYPES: dict[str, tuple[int, int]] = {
    "bool": (_BOOL, 8),
    **{f"int{bits}": (_INT, bits) for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": (_UINT, bits) for bits in (8, 16, 32, 64)},
    **{f"float{bits}": (_FLOAT, bits) for bits in (16, 32, 64)},
    **{f"complex{bits}": (_COMPLEX, bits) for bits in (64, 128)},
    "bfloat16": (_BFLOAT, 16),
    "float8_e4m3fn": (10, 8),
    "float8_e5m2": (12, 8),
}
_NAMES = {type_: name for name, type_ in _TYPES.items()}
# A capsule keeps the name's address.
_NAME = b"dltensor"
_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype = ctypes.c_void_p
_pointer.argtypes = (ctypes.py_object, ctypes.c_char_p)


class NotExported(Exception):
    """An object does not give its tensor away, or gives none that can be used; says why."""


class _Owner:
    """Whom numpy takes an array from that lies at an address; it keeps ``kept`` alive."""

    __slots__ = ("__array_interface__", "kept")

    def __init__(self, pointer: int, shape: tuple[int, ...], kind: str, kept: object) -> None:
        self.__array_interface__ = {
            "version": 3,
            "data": (pointer, False),
            "shape": shape,
            "typestr": kind,
        }
        self.kept = kept


def export(
    pointer: int,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    device: tuple[int, int],
    kept: object,
) -> object:
    """A capsule of a dense row-major tensor; ``kept`` lives until whoever takes it is done.

    It is numpy's own, of an array of the same shape that nobody reads, with the device put into it.
    Its deleter and destructor are C functions then, which know how to be called on any thread, with
    an exception under way, and when the interpreter has ended.
    """
    name = dtypes.from_numpy(dtype)
    if name is None or name not in _TYPES:
        raise BufferError(f"DLPack has no type for {dtype}")
    # numpy has no name for the types of ml_dtypes in DLPack.
    kind = dtype.str if dtype.isbuiltin == 1 else f"<u{dtype.itemsize}"
    capsule = np.asarray(_Owner(pointer, shape, kind, kept)).__dlpack__()
    tensor = _tensor(capsule)
    tensor.device.type, tensor.device.id = device
    tensor.dtype.code, tensor.dtype.bits = _TYPES[name]
    return capsule


@dataclass(frozen=True, slots=True)
class Foreign:
    """A tensor of a framework's. It stays as it is while ``capsule``, which nobody takes, lives."""

    capsule: object
    pointer: int
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    is_dense: bool


def is_on_card(output: object) -> bool:
    """Whether it is a tensor in a card's memory. Raises NotExported for other devices' memory."""
    device_of: Callable[[], tuple[int, int]] | None = getattr(output, "__dlpack_device__", None)
    if device_of is None:
        return False
    try:
        type_, id_ = device_of()
    except Exception as error:
        raise NotExported(str(error)) from error
    if int(type_) in _ON_HOST:
        return False
    if int(type_) not in _ON_CARD or id_ != 0:
        raise NotExported(
            f"it lies on device {id_} of DLPack's type {int(type_)}: needs the worker's card, "
            "device 0 of type 2 (CUDA), or the host"
        )
    return True


def take(output: Any, stream: int) -> tuple[Foreign, bool]:
    """An output, and whether what is enqueued on ``stream`` waits until it is computed.

    Not every producer takes a stream; what comes without one is ready for the default stream.
    Raises NotExported, and what the framework raises of its computation.
    """
    ordered = True
    try:
        try:
            capsule = output.__dlpack__(stream=stream)
        except (TypeError, RuntimeError):
            ordered = False
            capsule = output.__dlpack__()
    # Not RuntimeError: what it was computed by may have failed, and that is how one learns of it.
    except (BufferError, TypeError, ValueError, AssertionError, NotImplementedError) as error:
        raise NotExported(str(error)) from error
    return _read(capsule), ordered


def describe(output: Any) -> tuple[str, tuple[int, ...]]:
    """The dtype's name on the wire, and the shape, of an object with ``__dlpack__``."""
    try:
        foreign = _read(output.__dlpack__())
    except NotExported:
        raise
    except Exception as error:
        raise NotExported(str(error)) from error
    return foreign.dtype, foreign.shape


def _tensor(capsule: object) -> _Tensor:
    return _Tensor.from_address(_pointer(capsule, _NAME))


def _read(capsule: object) -> Foreign:
    tensor = _tensor(capsule)
    shape = tuple(tensor.shape[: tensor.ndim]) if tensor.ndim else ()
    type_ = (tensor.dtype.code, tensor.dtype.bits)
    if type_ not in _NAMES or tensor.dtype.lanes != 1:
        raise NotExported(
            f"its type is DLPack's code {type_[0]} of {type_[1]} bits and {tensor.dtype.lanes} "
            f"lanes: needs one of {', '.join(_TYPES)}"
        )
    strides = tuple(tensor.strides[: tensor.ndim]) if tensor.ndim and tensor.strides else None
    return Foreign(
        capsule,
        (tensor.data or 0) + tensor.byte_offset,
        _NAMES[type_],
        shape,
        math.prod(shape) * type_[1] // 8,
        strides is None or _is_dense(shape, strides),
    )


def _is_dense(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether elements lie side by side in row-major order. A stride of a length of 1 is any."""
    if 0 in shape:
        return True
    step = 1
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length != 1 and stride != step:
            return False
        step *= length
    return True
