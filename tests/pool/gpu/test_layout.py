"""Where a batch's inputs lie on the card."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from batchyard.pool.gpu.layout import Transfer, lay_out
from batchyard.wire.arena import align

ARENA = range(1 << 20, 1 << 21)
_NBYTES = st.integers(0, 300)
_PLACES = st.lists(st.tuples(st.integers((1 << 20) - 500, (1 << 20) + 2000), _NBYTES), max_size=6)


@given(st.lists(_NBYTES, min_size=1, max_size=6))
def test_a_batch_that_the_broker_laid_out_is_one_transfer(sizes: list[int]) -> None:
    places, address = [], ARENA.start + 640
    for nbytes in sizes:
        places.append((address, nbytes))
        address += align(nbytes)
    layout = lay_out(places, ARENA)
    assert len(layout.transfers) <= 1
    for (place, nbytes), offset in zip(places, layout.offsets, strict=True):
        assert not nbytes or offset == place - layout.transfers[0].address


# Side by side, but the first, or the second, lies at no multiple of 64.
@example([(ARENA.start + 4, 60), (ARENA.start + 64, 8)])
@example([(ARENA.start, 60), (ARENA.start + 60, 8)])
@given(_PLACES)
def test_every_input_gets_its_own_bytes(places: list[tuple[int, int]]) -> None:
    layout = lay_out(places, ARENA)
    host = {
        transfer.offset + i: transfer.address + i
        for transfer in layout.transfers
        for i in range(transfer.nbytes)
    }
    for (address, nbytes), offset in zip(places, layout.offsets, strict=True):
        assert offset % 64 == 0
        assert [host[offset + i] for i in range(nbytes)] == [*range(address, address + nbytes)]
    # No two transfers write to the same place, and none reads what is not the batch's.
    assert len(host) == sum(transfer.nbytes for transfer in layout.transfers)
    assert max(host, default=-1) < max(layout.nbytes, 1)
    own = {byte for address, nbytes in places for byte in range(address, address + nbytes)}
    assert all(byte in own or byte in ARENA for byte in host.values())


def test_what_lies_beside_the_arena_does_not_travel() -> None:
    places = [(64, 60), (128, 64)]
    assert lay_out(places, ARENA).transfers == [Transfer(64, 0, 60), Transfer(128, 256, 64)]
    assert lay_out(places, range(64, 192)).transfers == [Transfer(64, 0, 128)]
