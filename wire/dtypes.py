"""The element types that TensorFlow and numpy share, by their names on the wire.

A name is numpy's own (``"float32"``), a name of ``ml_dtypes`` (``"bfloat16"``), or ``"string"``
for TensorFlow's DT_STRING: byte strings of any length, ``object`` arrays of ``bytes`` in numpy.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

STRING = "string"

_NUMPY_NAMES = (
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "float32",
    "float64",
    "complex64",
    "complex128",
)
# Those of ml_dtypes that TensorFlow can feed and fetch. All are whole bytes in memory; 4-bit
# types are left out, because TensorFlow and numpy lay them out differently.
_ML_DTYPES_NAMES = ("bfloat16", "float8_e5m2", "float8_e4m3fn")

NAMES = (*_NUMPY_NAMES, *_ML_DTYPES_NAMES, STRING)
_BY_NAME: dict[str, np.dtype] = {name: np.dtype(name) for name in _NUMPY_NAMES}
_ITEMSIZES = {
    **{name: np.dtype(name).itemsize for name in _NUMPY_NAMES},
    "bfloat16": 2,
    "float8_e5m2": 1,
    "float8_e4m3fn": 1,
}
# Those of which not every sequence of bytes is a tensor: strings have offsets, and TensorFlow needs
# bools to be 0 or 1.
CHECKED = frozenset({"bool", STRING})
# A client may change its region at any moment, also between a check and the use of what was
# checked.
NOT_IN_REGIONS = CHECKED
# What models may read straight from a region: values that no kernel takes for an index, which it
# would check first and use later.
READ_IN_PLACE = frozenset(
    {"uint8", "float16", "float32", "float64", "complex64", "complex128", *_ML_DTYPES_NAMES}
)


def is_known(name: object) -> bool:
    """Whether ``name`` names an element type of the wire."""
    return name == STRING or name in _ITEMSIZES


def itemsize(name: str) -> int:
    """Bytes of one element; 0 for strings, whose length varies. Needs no ml_dtypes."""
    return 0 if name == STRING else _ITEMSIZES[name]


def to_numpy(name: str) -> np.dtype:
    """The numpy dtype for a wire name.

    Raises ``ImportError`` when the type lives in ``ml_dtypes`` and that is not installed, and
    ``KeyError`` for a name that is none.
    """
    if name == STRING:
        return np.dtype(object)
    found = _BY_NAME.get(name)
    if found is None:
        if name not in _ML_DTYPES_NAMES:
            raise KeyError(name)
        try:
            import ml_dtypes
        except ImportError as error:
            raise ImportError(
                f"dtype {name} needs the package ml_dtypes: pip install ml_dtypes"
            ) from error
        found = _BY_NAME[name] = np.dtype(getattr(ml_dtypes, name))
    return found


# numpy builds a dtype's name anew each time that it is asked: 5 us.
@lru_cache(maxsize=256)
def from_numpy(dtype: np.dtype) -> str | None:
    """The wire name of a numpy dtype in native byte order, or None when it has none.

    ``object``, fixed-width bytes (``S``) and fixed-width text (``U``) are all ``"string"``.
    """
    if dtype.kind in "OSU":
        return STRING
    name = dtype.name
    if name in _ITEMSIZES and dtype.isnative:
        return name
    return None
