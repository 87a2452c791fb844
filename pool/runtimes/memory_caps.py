"""Keeps the frameworks that a Python model imports within the worker's share of a card.

Each has a switch of its own, which must be set before its first allocation. So this waits for the
import, in the model's file or in a call, and sets it right after. What the user has set himself
counts, and the log says so. Each framework gets the whole share: a worker should use one.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from batchyard.wire import log
from batchyard.wire.control import WorkerSettings

_MIB = 1 << 20
# PyTorch reads these when it first allocates; the second is the first's newer name.
_TORCH_ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
_TORCH_FRACTION = "per_process_memory_fraction"
# CuPy reads this when it first allocates, of bytes or of per cent.
_CUPY_LIMIT = "CUPY_GPU_MEMORY_LIMIT"
# jaxlib reads these when JAX first looks for devices. The second is the first's newer name; to have
# both is an error. Every version knows the first.
_JAX_FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION"
_JAX_FRACTIONS = (_JAX_FRACTION, "XLA_CLIENT_MEM_FRACTION")
_JAX_PREALLOCATE = "XLA_PYTHON_CLIENT_PREALLOCATE"
_JAX_ALLOCATOR = "XLA_PYTHON_CLIENT_ALLOCATOR"
# Of jaxlib's allocators these keep to the fraction.
_JAX_CAPPED_ALLOCATORS = ("", "default", "bfc", "cuda_async")


class NotCapped(Exception):
    """A framework does not keep within the share; says why."""


Cap = Callable[[ModuleType, WorkerSettings], None]


def cap_memory(settings: WorkerSettings) -> None:
    """Has frameworks keep within the worker's memory on its card, once they are imported.

    Called before anything imports one. On a CPU, or without a limit and growth, all is left as it
    is.
    """
    if settings.device == "cpu":
        return
    if settings.memory_limit_mb is None and not settings.memory_growth:
        return
    if any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        return
    _AfterImport({name: functools.partial(_apply, cap, settings) for name, cap in _CAPS.items()})


def _apply(cap: Cap, settings: WorkerSettings, module: ModuleType) -> None:
    name = module.__name__
    try:
        cap(module, settings)
    except NotCapped as error:
        log.warning("memory_not_capped", framework=name, reason=error)
    except Exception as error:
        # Whatever a version of it makes of this: the model may do without the cap.
        reason = f"{type(error).__name__}: {error}"
        log.warning("memory_not_capped", framework=name, reason=reason)
    else:
        limit = settings.memory_limit_mb
        log.info("memory_capped", framework=name, limit_mb="none" if limit is None else limit)


def _cap_torch(torch: Any, settings: WorkerSettings) -> None:
    if settings.memory_limit_mb is None:
        # It takes memory as it needs it.
        return
    if not torch.cuda.is_available():
        raise NotCapped("this PyTorch sees no card")
    for variable in _TORCH_ALLOCATOR:
        if _TORCH_FRACTION in os.environ.get(variable, ""):
            _yield_to_user(variable)
    # As PyTorch's allocator counts: https://pytorch.org/docs/stable/cuda.html
    _, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction(min(settings.memory_limit_mb * _MIB / total, 1.0))


def _cap_jax(jax: Any, settings: WorkerSettings) -> None:
    allocator = os.environ.get(_JAX_ALLOCATOR, "").lower()
    if allocator not in _JAX_CAPPED_ALLOCATORS:
        raise NotCapped(f"{_JAX_ALLOCATOR}={allocator} knows no limit")
    _yield_to_user(*_JAX_FRACTIONS)
    if settings.memory_limit_mb is not None:
        fraction = settings.memory_limit_mb * _MIB / _total_nbytes()
        os.environ[_JAX_FRACTION] = f"{min(fraction, 1.0):.6f}"
    elif settings.memory_growth:
        _yield_to_user(_JAX_PREALLOCATE)
        os.environ[_JAX_PREALLOCATE] = "false"


def _cap_cupy(cupy: Any, settings: WorkerSettings) -> None:
    if settings.memory_limit_mb is None:
        # It takes memory as it needs it.
        return
    _yield_to_user(_CUPY_LIMIT)
    os.environ[_CUPY_LIMIT] = str(settings.memory_limit_mb * _MIB)
    # Pools that are made later read the variable.
    cupy.get_default_memory_pool().set_limit(size=settings.memory_limit_mb * _MIB)


def _cap_tensorflow(tensorflow: Any, settings: WorkerSettings) -> None:
    from batchyard.pool.runtimes.device_share import bind_eager_runtime

    bind_eager_runtime(settings)


_CAPS: Mapping[str, Cap] = {
    "torch": _cap_torch,
    "jax": _cap_jax,
    "cupy": _cap_cupy,
    "tensorflow": _cap_tensorflow,
}


def _yield_to_user(*variables: str) -> None:
    for variable in variables:
        if variable in os.environ:
            raise NotCapped(f"{variable}={os.environ[variable]} is set, and counts")


def _total_nbytes() -> int:
    """The card's memory as CUDA sees it, which is what jaxlib takes its fraction of."""
    from batchyard.pool.gpu.driver import Driver, NoCuda

    try:
        _, total = Driver.open().memory()
        return total
    except NoCuda as error:
        raise NotCapped(f"the card's memory is not known: {error}") from None


class _AfterImport(importlib.abc.MetaPathFinder):
    """Calls back once a module is imported; right away for what is."""

    def __init__(self, calls: Mapping[str, Callable[[ModuleType], None]]) -> None:
        self._calls = dict(calls)
        # Looked for at this moment, by the other finders.
        self._asked: set[str] = set()
        for name in self._calls.keys() & sys.modules.keys():
            self._calls.pop(name)(sys.modules[name])
        sys.meta_path.insert(0, self)

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module's own spec, whose loader calls back."""
        if name not in self._calls or name in self._asked:
            return None
        self._asked.add(name)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._asked.discard(name)
        if spec is not None and spec.loader is not None:
            # Whoever only asks where it is does not import it.
            spec.loader = _Loader(spec.loader, functools.partial(self._imported, name))
        return spec

    def _imported(self, name: str, module: ModuleType) -> None:
        call = self._calls.pop(name, None)
        if call is not None:
            call(module)


class _Loader(importlib.abc.Loader):
    """Another loader, and a call when it is done."""

    def __init__(self, loader: Any, call: Callable[[ModuleType], None]) -> None:
        self._loader = loader
        self._call = call

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        # What looks for the module's files later asks its own loader.
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._call(module)
