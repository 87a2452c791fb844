"""The worker's card: batches are copied there and back while models run.

Of a batch, three things are enqueued, each on a stream of its own, and nobody waits in between::

    copy in    inputs ──► arrived
    model's    (waits for arrived) kernels ──► read   (waits for left)
    copy out   (waits for arrived, read, and the outputs' own streams) outputs ──► left

So ``left`` stands for the whole batch: who has waited for it may give the block away, the buffer,
and what the outputs lay in. The model's later kernels wait for it too, on the card, so that a
model may return the same memory each time.

JAX names a stream that its own only waits for: what it computes from inputs is known to be done
when the outputs are. What leads to no output is not waited for; it may read the next batch's bytes.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from batchyard.pool.gpu import dlpack
from batchyard.pool.gpu.buffers import Buffers, Hold, Lease
from batchyard.pool.gpu.device_array import DeviceArray
from batchyard.pool.gpu.driver import DEFAULT_STREAM, OUT_OF_MEMORY, CudaError, Driver, NoCuda
from batchyard.pool.gpu.layout import Layout, lay_out
from batchyard.pool.gpu.streams import Event, Events, Streams
from batchyard.wire import dtypes
from batchyard.wire.errors import Internal, ResourceExhausted

Array = npt.NDArray[Any]
# (name, dtype's name on the wire, shape, nbytes) of an output.
OutputSpec = tuple[str, str, tuple[int, ...], int]
Room = Callable[[Sequence[OutputSpec]], Sequence[Array]]
_WHY_NOT_PAGE_LOCKED = {
    "CUDA_ERROR_NOT_SUPPORTED": "this card, driver or system cannot page-lock shared memory",
    "CUDA_ERROR_NOT_PERMITTED": "the system does not permit it",
    "CUDA_ERROR_OUT_OF_MEMORY": "the system has not enough memory that can be page-locked",
    "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED": "another part of this process has done so",
}


class Card:
    """One card, as this process uses it. Batches may be begun by several threads."""

    def __init__(self, driver: Driver, arena: memoryview) -> None:
        """Use ``open``."""
        self.driver = driver
        self.name = driver.name
        self.timed = Events(driver, timed=True)
        self.untimed = Events(driver, timed=False)
        self.buffers = Buffers(driver, self.untimed)
        self.copy_in = driver.stream()
        self.copy_out = Streams(driver)
        # The end of the batch whose outputs were last enqueued.
        self.last_left: Event | None = None
        self._arena = np.frombuffer(arena, np.uint8)
        begin = _address(self._arena)
        self.arena = range(begin, begin + self._arena.nbytes)
        self.why_not_page_locked = self._page_lock()

    @classmethod
    def open(cls, arena: memoryview) -> Card:
        """The first card that CUDA_VISIBLE_DEVICES leaves. Page-locks the arena if it can.

        ``why_not_page_locked`` says why that was refused; None where it was not. All of the arena
        is taken from the system then. Raises NoCuda.
        """
        driver = Driver.open()
        try:
            return cls(driver, arena)
        except CudaError as error:
            raise NoCuda(f"{driver.name} cannot be used: {error}") from None

    @property
    def is_lost(self) -> bool:
        """Whether this process can use the card no more: its context is broken.

        Waits for all that the card does: only then is it known.
        """
        try:
            self.driver.make_current()
            self.driver.synchronize()
        except CudaError as error:
            # Refused while a stream is captured. Whatever else it says, it will say again: that MPS
            # went away, the card, or the primary context.
            return not error.name.startswith("CUDA_ERROR_STREAM_CAPTURE")
        return False

    @property
    def buffer_nbytes(self) -> int:
        """Bytes of the card's memory that batches' buffers take."""
        return self.buffers.nbytes

    def begin(self, inputs: Mapping[str, Array]) -> CardBatch:
        """Starts copying inputs to the card, and returns at once.

        Inputs that are no numbers are passed on as they are. Raises ResourceExhausted where the
        card has no memory left, CudaError.
        """
        self.driver.make_current()
        try:
            return CardBatch(self, inputs)
        except CudaError as error:
            if error.name != OUT_OF_MEMORY:
                raise
            raise ResourceExhausted(f"the card has no memory left: {error}") from error

    def close(self) -> None:
        """Gives buffers, streams and the page-lock back. No batch may be under way.

        Not needed at the end of the process, which gives back all.
        """
        self.driver.make_current()
        self.last_left = None
        self.buffers.close()
        for pool in (self.timed, self.untimed, self.copy_out):
            pool.close()
        self.driver.destroy_stream(self.copy_in)
        if self.why_not_page_locked is None:
            self.driver.page_unlock(self.arena.start)
        self.driver.close()

    def _page_lock(self) -> str | None:
        try:
            self.driver.page_lock(self.arena.start, len(self.arena))
        except CudaError as error:
            reason = _WHY_NOT_PAGE_LOCKED.get(error.name)
            return f"{reason} ({error.name})" if reason else str(error)
        return None


class CardBatch:
    """A batch whose inputs are on the card, or on their way. Ends by ``wait`` or ``abandon``.

    ``arrays`` is what the model is to get: inputs by name, strings as they came.
    """

    def __init__(self, card: Card, inputs: Mapping[str, Array]) -> None:
        """Use ``Card.begin``."""
        self._card = card
        self._driver = card.driver
        # After wait(): how long the card computed, from the end of the transfer in, or the end of
        # the batch before if that is later, to the end of the transfer out.
        self.seconds = 0.0
        self.arrays: dict[str, DeviceArray | Array] = dict(inputs)
        self._outputs: list[tuple[str, Any]] = []
        # What the outputs on the card lie in.
        self._foreign: list[dlpack.Foreign] = []
        self._copy_out: Any = None
        self._left: Event | None = None
        self._before: Event | None = None
        numbers = {name: _dense(a) for name, a in inputs.items() if a.dtype.kind not in "OSU"}
        # The transfer reads them.
        self._sources = [*numbers.values()]
        places = [(_address(array), array.nbytes) for array in self._sources]
        layout = lay_out(places, card.arena)
        self._lease: Lease | None = None
        self._hold: weakref.ref[Hold] | None = None
        if numbers:
            self._lease = card.buffers.take(max(layout.nbytes, 1), card.copy_in)
        try:
            self._arrived = self._send(layout)
        except BaseException:
            self._end()
            raise
        if self._lease is not None:
            self._show(numbers, layout, self._lease)

    def bring(self, outputs: Sequence[tuple[str, Any]], room: Room) -> None:
        """Starts copying outputs from the card into arrays that ``room`` gives; returns at once.

        ``room`` gets name, dtype, shape and bytes of each output that is on the card, and gives an
        array of so many bytes for each. Outputs that are not on the card pass through. The model
        may use the memory of its inputs and outputs again, and so may its next call. Raises
        Internal for an output that cannot be had; then ``abandon`` is still to be called.
        """
        self._driver.make_current()
        # Who else holds them has kept them.
        self.arrays = {}
        self._copy_out = stream = self._card.copy_out.take()
        on_card = [(name, self._take(name, output)) for name, output in outputs]
        specs = [(name, o.dtype, o.shape, o.nbytes) for name, o in on_card if o is not None]
        rooms = iter(room(specs) if specs else ())
        self._driver.wait_for(stream, self._arrived.handle)
        readers = [reader for reader in self._readers() if self._follow(reader, stream)]
        for (name, output), (_, foreign) in zip(outputs, on_card, strict=True):
            self._outputs.append((name, output if foreign is None else self._fetch(foreign, rooms)))
        self._before, self._left = self._card.last_left, self._card.timed.record(stream)
        self._card.last_left = self._left
        for reader in readers:
            self._driver.wait_for(reader, self._left.handle)

    def wait(self) -> list[tuple[str, Any]]:
        """The outputs, once nothing of the batch is under way any more: after ``bring``.

        May be called on another thread. Raises CudaError.
        """
        left = self._left
        if left is None:
            raise RuntimeError("bring() comes before wait()")
        self._driver.make_current()
        try:
            self._driver.synchronize_event(left.handle)
            self.seconds = self._seconds(left)
        except CudaError:
            with contextlib.suppress(CudaError):
                self.abandon()
            raise
        outputs = self._outputs
        self._end()
        return outputs

    def abandon(self) -> None:
        """Waits for all that the card does: for a batch that has no outputs, as its model raised.

        Raises CudaError.
        """
        try:
            self._driver.make_current()
            try:
                self._driver.synchronize()
            except CudaError as error:
                if error.is_sticky:
                    raise
                # Refused while a stream is captured. At least nothing may touch the block.
                for stream in (self._card.copy_in, self._copy_out):
                    if stream is not None:
                        self._driver.synchronize_stream(stream)
        finally:
            self._end()

    def _send(self, layout: Layout) -> Event:
        """Enqueues the transfers in; the event that stands for them."""
        stream = self._card.copy_in
        base = 0 if self._lease is None else self._lease.pointer
        try:
            for address, offset, nbytes in layout.transfers:
                self._driver.copy_in(base + offset, address, nbytes, stream)
            return self._card.timed.record(stream)
        except CudaError:
            # What was enqueued reads the block.
            with contextlib.suppress(CudaError):
                self._driver.synchronize_stream(stream)
            raise

    def _show(self, numbers: Mapping[str, Array], layout: Layout, lease: Lease) -> None:
        """Puts arrays on the card into ``arrays``."""
        hold = Hold(lease)
        self._hold = weakref.ref(hold)
        for (name, array), offset in zip(numbers.items(), layout.offsets, strict=True):
            pointer = lease.pointer + offset
            self.arrays[name] = DeviceArray(
                self._driver, hold, self._arrived, pointer, array.shape, array.dtype
            )

    def _readers(self) -> list[Any]:
        """The streams that the model works on, as far as it said."""
        said = tuple(self._lease.streams) if self._lease is not None else ()
        return [self._driver.foreign_stream(address) for address in said or (DEFAULT_STREAM,)]

    def _follow(self, reader: Any, follower: Any) -> bool:
        """Has a stream wait for what is enqueued on one of the model's.

        Not if that one is no more; then this thread has waited.
        """
        try:
            event = self._card.untimed.record(reader)
        except CudaError:
            # Of such a stream CUDA says that the context is destroyed. Whether it is shows here.
            self._driver.synchronize()
            return False
        self._driver.wait_for(follower, event.handle)
        return True

    def _take(self, name: str, output: Any) -> dlpack.Foreign | None:
        """An output that is on the card; the copy-out stream waits for it. None for others."""
        try:
            if not dlpack.is_on_card(output):
                return None
            foreign = self._taken(output)
            if not foreign.is_dense and hasattr(output, "contiguous"):
                # That is copied on the framework's current stream. Where the model has left the one
                # that it computed on, as by PyTorch's `with torch.cuda.stream(…)`, it is the
                # default one.
                default = self._driver.foreign_stream(DEFAULT_STREAM)
                for reader in self._readers():
                    self._follow(reader, default)
                foreign = self._taken(output.contiguous())
        except dlpack.NotExported as error:
            raise Internal(f"output {name!r} cannot be brought from the card: {error}") from error
        if not foreign.is_dense:
            raise Internal(
                f"output {name!r}, of shape {foreign.shape}, is not dense in row-major order: "
                "needs to be, as ascontiguousarray makes it"
            )
        return foreign

    def _taken(self, output: Any) -> dlpack.Foreign:
        foreign, ordered = dlpack.take(output, self._driver.address(self._copy_out))
        # Until the transfer out is done, whatever happens meanwhile.
        self._foreign.append(foreign)
        if not ordered:
            default = self._driver.foreign_stream(DEFAULT_STREAM)
            event = self._card.untimed.record(default)
            self._driver.wait_for(self._copy_out, event.handle)
        return foreign

    def _fetch(self, foreign: dlpack.Foreign, rooms: Iterator[Array]) -> Array:
        """Enqueues an output's transfer into the next room."""
        target: Array = np.ndarray(foreign.shape, dtypes.to_numpy(foreign.dtype), next(rooms))
        if foreign.nbytes:
            self._driver.copy_out(_address(target), foreign.pointer, foreign.nbytes, self._copy_out)
        return target

    def _seconds(self, left: Event) -> float:
        seconds = self._driver.seconds_between(self._arrived.handle, left.handle)
        if self._before is not None:
            # Of batches that several threads began, the one before may end later.
            with contextlib.suppress(CudaError):
                since = self._driver.seconds_between(self._before.handle, left.handle)
                if 0 <= since < seconds:
                    return since
        return seconds

    def _end(self) -> None:
        """Gives back what the batch had, all of which is done."""
        self.arrays, self._sources, self._outputs = {}, [], []
        # Their frameworks may use the memory again.
        self._foreign = []
        lease, self._lease = self._lease, None
        if lease is not None:
            self._card.buffers.end()
            if self._hold is None or self._hold() is None:
                # Nobody can enqueue more on them that reads it; and what was is done.
                lease.streams.clear()
        stream, self._copy_out = self._copy_out, None
        if stream is not None:
            self._card.copy_out.give_back(stream)
        self._before = self._left = None


def _dense(array: Array) -> Array:
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)


def _address(array: Array) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
