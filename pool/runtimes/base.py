"""What a worker asks of a loaded model, whatever runs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy.typing as npt

from batchyard.wire.signatures import SignatureSpec

Array = npt.NDArray[Any]


class LoadedModel(Protocol):
    """A model that can run batches. ``run`` may be called by several threads at once."""

    @property
    def signatures(self) -> Sequence[SignatureSpec]:
        """What it can run."""

    @property
    def signature_def(self) -> bytes:
        """A SavedModel's signatures as it has them; see ``work.ModelReport``."""

    @property
    def stateful(self) -> bool:
        """Whether running a signature changes what later runs give."""

    @property
    def bears_changing_inputs(self) -> bool:
        """Whether inputs may change while it runs: it then gives another answer, and no more.

        Only such a model is shown inputs where a client has them.
        """

    @property
    def any_thread(self) -> bool:
        """Whether calls may come from different threads, one after the other."""

    @property
    def device_arrays(self) -> bool:
        """Whether the worker brings inputs to the card, and outputs back.

        ``run`` then takes a ``DeviceArray`` of each input but strings, returns as soon as its work
        is enqueued, and may return what lies on the card, as anything with ``__dlpack__``. One
        that waits for its work instead has ``any_thread``, or the next batch is not brought
        meanwhile.
        """

    def run(self, signature: str, inputs: Mapping[str, Any]) -> Sequence[tuple[str, Any]]:
        """The outputs ``(name, array)`` for inputs by name.

        Inputs are views of shared memory that is given to another batch afterwards, read-only
        where it is a client's; string inputs are object arrays of bytes. Raises a
        BatchyardError that says why the model could not run.
        """

    def let_go(self) -> None:
        """Frees what is held of inputs only until something runs again."""


class DeviceError(Exception):
    """The worker's device is not there."""


class ModelLoadError(Exception):
    """The model cannot be loaded; says why. Not tried again."""
