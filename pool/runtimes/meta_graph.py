"""Reads what a SavedModel's folder says of itself, before TensorFlow makes anything of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from tensorflow.python.saved_model.loader_impl import SavedModelLoader

from batchyard.pool.runtimes.operations import import_packages, missing_operation

SERVE_TAG = "serve"
_Loaded = TypeVar("_Loaded")


def read_meta_graph(path: str) -> Any:
    """The ``MetaGraphDef`` that is to be served. Raises OSError or RuntimeError where none is."""
    return SavedModelLoader(path).get_meta_graph_def_from_tags([SERVE_TAG])


def with_operations(load: Callable[[], _Loaded]) -> _Loaded:
    """What ``load`` gives; where it misses an operation, once more with the packages' own."""
    try:
        return load()
    except Exception as error:
        if missing_operation(error) is None:
            raise
    import_packages()
    return load()
