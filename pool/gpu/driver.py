"""CUDA's driver API, as far as transfers need it."""

from __future__ import annotations


class NoCuda(Exception):
    """There is no card to be used from here; says why."""


class CudaError(Exception):
    """A call of the driver failed.

    ``name`` is CUDA's own, as ``CUDA_ERROR_OUT_OF_MEMORY``. ``is_sticky`` says that the context is
    broken for good: every later call of this process fails too.
    """

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name
        self.is_sticky = False
