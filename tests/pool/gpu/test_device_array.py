"""What a batch's inputs on the card say of themselves, and what outputs have to be."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from support.card_batches import double
from support.simulated_driver import Framework, Kind, SimulatedDriver, Tensor

from batchyard.pool.gpu.card import Card, OutputSpec
from batchyard.wire.errors import Internal


@contextlib.contextmanager
def on_card(card: Card, values: Any) -> Iterator[Any]:
    """An input of a batch."""
    batch = card.begin({"x": values})
    yield batch.arrays["x"]
    batch.abandon()


def test_array_interface(card: Card, driver: SimulatedDriver) -> None:
    with on_card(card, np.zeros((2, 3), np.float32)) as x:
        interface = x.__cuda_array_interface__
        assert driver.log(Kind.COPY_IN)[-1].is_end
        assert interface == {
            "version": 3,
            "shape": (2, 3),
            "typestr": "<f4",
            "data": (x.pointer, False),
            "strides": None,
            "stream": None,
        }
        del x


def test_array_interface_has_no_bfloat16(card: Card) -> None:
    with on_card(card, np.zeros(3, ml_dtypes.bfloat16)) as x:
        assert not hasattr(x, "__cuda_array_interface__")
        del x


def test_what_cannot_be_asked_of_it(card: Card) -> None:
    with on_card(card, np.zeros((2, 3), np.float32)) as x:
        assert x.__dlpack__(stream=1, max_version=(1, 0), dl_device=(2, 0), copy=False)
        with pytest.raises(TypeError, match=r"DeviceArray\(float32, \(2, 3\)\) lies on the card"):
            np.asarray(x)
        with pytest.raises(BufferError, match="copy the array that you get"):
            x.__dlpack__(copy=True)
        with pytest.raises(BufferError, match=r"not on \(1, 0\)"):
            x.__dlpack__(dl_device=(1, 0))
        for stream in (0, -2):
            with pytest.raises(BufferError, match=f"stream = {stream}: needs 1"):
                x.__dlpack__(stream=stream)
        del x


@pytest.mark.parametrize("stream", [None, -1])
def test_without_a_stream_the_thread_waits(
    stream: int | None, card: Card, arena: memoryview, driver: SimulatedDriver
) -> None:
    driver.cards.set_bytes_per_s(100_000)
    batch = card.begin({"x": np.frombuffer(arena, np.uint8, 4000)})
    batch.arrays["x"].__dlpack__(stream=stream)
    assert driver.log(Kind.COPY_IN)[-1].is_end
    batch.abandon()


def test_any_thread_may_take_it(card: Card, framework: Framework) -> None:
    taken: list[object] = []
    with on_card(card, np.zeros(3)) as x:

        def take(x: Any) -> None:
            taken.append(x.__dlpack__(stream=framework.stream))

        thread = threading.Thread(target=take, args=(x,))
        thread.start()
        thread.join(10)
        assert taken
        taken.clear()
        del x


def test_taken_without_a_stream_it_may_be_read_on_the_default_one(
    card: Card, framework: Framework, driver: SimulatedDriver
) -> None:
    default = Framework(default_stream=True)
    batch = card.begin({"x": np.zeros(3)})
    framework.from_dlpack(batch.arrays["x"])
    batch.arrays["x"].__dlpack__()
    default.launch(lambda: time.sleep(0.05))
    batch.bring([], room)
    batch.wait()
    assert driver.log(Kind.KERNEL)[-1].is_end
    default.close()


def room(specs: Sequence[OutputSpec]) -> list[np.ndarray[Any, Any]]:
    return [np.zeros(nbytes, np.uint8) for *_, nbytes in specs]


class Awkward(Tensor):
    """A tensor with something to be said against it."""

    def __init__(self, like: Tensor, what: Any) -> None:
        super().__init__(like.framework, like.pointer, like.array, like)
        self.what = what

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.what if isinstance(self.what, tuple) else super().__dlpack_device__()

    def __dlpack__(self, *, stream: int | None = None) -> object:
        if isinstance(self.what, Exception) and (
            stream is not None or isinstance(self.what, BufferError)
        ):
            raise type(self.what)(*self.what.args)
        return super().__dlpack__(stream=stream)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (BufferError("use tensor.detach()"), "'y' cannot be brought from the card: use tensor.det"),
        ((2, 3), "'y' cannot be brought from the card: it lies on device 3"),
    ],
)
def test_outputs_that_cannot_be_had(
    what: Any, message: str, card: Card, framework: Framework
) -> None:
    batch = card.begin({"x": np.zeros(3)})
    y = Awkward(framework.from_dlpack(batch.arrays["x"]), what)
    with pytest.raises(Internal, match=message):
        batch.bring([("y", y)], lambda specs: [])
    del y
    batch.abandon()


def test_output_that_takes_no_stream(card: Card) -> None:
    framework = Framework(default_stream=True)
    y = framework.empty((3,), np.int64)
    gate = threading.Event()

    def kernel() -> None:
        assert gate.wait(10)
        y.array[...] = 5

    framework.launch(kernel)
    # Nothing but the default stream tells when it is there.
    threading.Timer(0.01, gate.set).start()
    batch = card.begin({"x": np.arange(3)})
    batch.arrays["x"].__dlpack__(stream=card.driver.address(card.copy_in))
    awkward = Awkward(y, RuntimeError("no stream"))
    batch.bring([("y", awkward)], room)
    assert batch.wait()[0][1].tolist() == [5, 5, 5]
    framework.close()


class Transposed:
    """An output whose elements do not lie as its shape says; ``contiguous`` may mend that."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.tensor.__dlpack_device__()

    def __dlpack__(self, *, stream: int | None = None) -> object:
        # Of another device than it says, which nobody looks at here.
        return self.tensor.array.T.__dlpack__()


class Mended(Transposed):
    """A transposed tensor of PyTorch's, and on whose stream it is copied."""

    def __init__(self, tensor: Tensor, current: Framework) -> None:
        super().__init__(tensor)
        self.current = current

    def contiguous(self) -> Tensor:
        source = self.tensor.array.T
        copy = self.current.empty(source.shape, source.dtype)

        def kernel() -> None:
            copy.array[...] = source

        self.current.launch(kernel)
        return copy


def test_outputs_that_are_not_dense(card: Card, framework: Framework) -> None:
    batch = card.begin({"x": np.arange(6).reshape(2, 3)})
    x = framework.from_dlpack(batch.arrays["x"])
    with pytest.raises(Internal, match=r"'y', of shape \(3, 2\), is not dense in row-major order"):
        batch.bring([("y", Transposed(x))], lambda specs: [])
    batch.abandon()
    batch = card.begin({"x": np.arange(6).reshape(2, 3)})
    y = Mended(framework.from_dlpack(batch.arrays["x"]), framework)
    batch.bring([("y", y)], room)
    assert batch.wait()[0][1].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_outputs_of_a_stream_that_the_model_has_left_are_copied_when_they_are_there(
    card: Card, framework: Framework
) -> None:
    current = Framework(default_stream=True)
    batch = card.begin({"x": np.arange(6).reshape(2, 3)})
    gate = threading.Event()
    y = double(framework, batch.arrays["x"], gate)
    threading.Timer(0.01, gate.set).start()
    batch.bring([("y", Mended(y, current))], room)
    assert batch.wait()[0][1].tolist() == [[0, 6], [2, 8], [4, 10]]
    current.close()
