"""The allocator of the arena: blocks never overlap, and what comes back becomes one again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchyard.wire.arena import ALIGNMENT, align
from batchyard.wire.blocks import Block, BlockAllocator

UNITS = 32
ARENA_NBYTES = UNITS * ALIGNMENT


def allocated(allocator: BlockAllocator, nbytes: int) -> Block:
    block = allocator.allocate(nbytes)
    assert block is not None
    return block


def gaps(blocks: list[Block]) -> list[tuple[int, int]]:
    """Offset and size of the free extents between blocks."""
    found = []
    end = 0
    for block in sorted(blocks, key=lambda block: block.offset):
        if block.offset > end:
            found.append((end, block.offset - end))
        end = block.offset + block.nbytes
    if end < ARENA_NBYTES:
        found.append((end, ARENA_NBYTES - end))
    return found


# An operation is how many bytes to allocate, or which of the live blocks to free.
allocations = st.tuples(st.just("allocate"), st.integers(0, ARENA_NBYTES // 2))
frees = st.tuples(st.just("free"), st.integers(0, 1 << 16))


@given(st.lists(allocations | frees, max_size=60))
def test_blocks_are_aligned_never_overlap_and_come_from_the_lowest_address(
    operations: list[tuple[str, int]],
) -> None:
    allocator = BlockAllocator(ARENA_NBYTES)
    live: list[Block] = []
    for operation, value in operations:
        if operation == "free" and live:
            allocator.free(live.pop(value % len(live)))
        elif operation == "allocate":
            want = align(max(value, 1))
            fitting = [offset for offset, size in gaps(live) if size >= want]
            block = allocator.allocate(value)
            assert block == (Block(fitting[0], want) if fitting else None)
            if block is not None:
                live.append(block)
        assert allocator.used_nbytes == sum(block.nbytes for block in live)


@given(st.data())
def test_what_comes_back_in_any_order_becomes_one_extent_again(data: st.DataObject) -> None:
    allocator = BlockAllocator(ARENA_NBYTES)
    sizes = data.draw(st.lists(st.integers(1, 4 * ALIGNMENT), min_size=1, max_size=UNITS // 4))
    blocks = [allocated(allocator, size) for size in sizes]
    for block in data.draw(st.permutations(blocks)):
        allocator.free(block)
    assert allocator.used_nbytes == 0
    assert allocator.allocate(ARENA_NBYTES) == Block(0, ARENA_NBYTES)


@given(st.data())
def test_a_block_that_is_free_cannot_be_freed(data: st.DataObject) -> None:
    allocator = BlockAllocator(ARENA_NBYTES)
    blocks = [allocated(allocator, 2 * ALIGNMENT) for _ in range(UNITS // 2)]
    freed = data.draw(st.lists(st.sampled_from(blocks), unique=True, min_size=1))
    for block in freed:
        allocator.free(block)
    used = allocator.used_nbytes
    for block in freed:
        second_half = Block(block.offset + ALIGNMENT, ALIGNMENT)
        for wrong in (block, Block(block.offset, ALIGNMENT), second_half):
            with pytest.raises(ValueError, match="not handed out"):
                allocator.free(wrong)
    assert allocator.used_nbytes == used
    # The failed attempts left no trace: what is still out comes back, and all is one extent.
    for block in blocks:
        if block not in freed:
            allocator.free(block)
    assert allocator.allocate(ARENA_NBYTES) == Block(0, ARENA_NBYTES)


@pytest.mark.parametrize(
    "wrong",
    [
        Block(ALIGNMENT, 2 * ALIGNMENT),
        Block(0, 2 * ALIGNMENT),
        Block(ARENA_NBYTES, ALIGNMENT),
        Block(0, 2 * ARENA_NBYTES),
    ],
    ids=["begins taken, ends free", "ends free", "past the end", "larger than the arena"],
)
def test_a_block_that_is_partly_free_or_outside_cannot_be_freed(wrong: Block) -> None:
    allocator = BlockAllocator(ARENA_NBYTES)
    kept = [allocated(allocator, ALIGNMENT), allocated(allocator, ALIGNMENT)]
    hole = kept.pop() if wrong.offset < ALIGNMENT else allocated(allocator, ALIGNMENT)
    allocator.free(hole)
    with pytest.raises(ValueError, match="not handed out"):
        allocator.free(wrong)


def test_a_full_arena_can_be_freed_again() -> None:
    allocator = BlockAllocator(ARENA_NBYTES)
    whole = allocated(allocator, ARENA_NBYTES)
    assert allocator.allocate(1) is None
    for outside in (Block(ARENA_NBYTES, ALIGNMENT), Block(0, ARENA_NBYTES + ALIGNMENT)):
        with pytest.raises(ValueError, match="not handed out"):
            allocator.free(outside)
    allocator.free(whole)
    with pytest.raises(ValueError, match="not handed out"):
        allocator.free(whole)
    assert allocator.allocate(ARENA_NBYTES) == whole


@given(st.data())
def test_just_the_block_that_is_asked_for_is_reserved(data: st.DataObject) -> None:
    allocator = BlockAllocator(ARENA_NBYTES)
    # As another allocator handed them out.
    other = BlockAllocator(ARENA_NBYTES)
    sizes = data.draw(st.lists(st.integers(1, 6 * ALIGNMENT), min_size=1, max_size=12))
    blocks = [block for size in sizes if (block := other.allocate(size)) is not None]
    reserved = data.draw(st.permutations(data.draw(st.lists(st.sampled_from(blocks), unique=True))))
    for block in reserved:
        allocator.reserve(block)
        with pytest.raises(ValueError, match="is not free"):
            allocator.reserve(block)
    assert allocator.used_nbytes == sum(block.nbytes for block in reserved)
    # The gaps between them are what is handed out.
    for _, size in gaps(reserved):
        assert allocator.allocate(size) is not None
    assert allocator.used_nbytes == ARENA_NBYTES
    assert allocator.allocate(1) is None
    for block in reserved:
        allocator.free(block)
    for block in reserved:
        allocator.reserve(block)
    assert allocator.used_nbytes == ARENA_NBYTES


@pytest.mark.parametrize(
    "wrong",
    [
        Block(0, 2 * ALIGNMENT),
        Block(2 * ALIGNMENT, 2 * ALIGNMENT),
        Block(3 * ALIGNMENT, ALIGNMENT),
        Block(2 * ALIGNMENT, 3 * ALIGNMENT),
        Block(ARENA_NBYTES, ALIGNMENT),
        Block(ARENA_NBYTES - ALIGNMENT, 2 * ALIGNMENT),
        Block(0, 0),
    ],
    ids=["ends", "begins", "whole", "in the middle", "outside", "past the end", "nothing"],
)
def test_a_block_that_is_not_all_free_cannot_be_reserved(wrong: Block) -> None:
    allocator = BlockAllocator(ARENA_NBYTES)
    taken = [Block(ALIGNMENT, 2 * ALIGNMENT), Block(3 * ALIGNMENT, ALIGNMENT)]
    for block in taken:
        allocator.reserve(block)
    with pytest.raises(ValueError, match="is not free"):
        allocator.reserve(wrong)
    assert allocator.used_nbytes == 3 * ALIGNMENT
    for block in taken:
        allocator.free(block)
    assert allocator.allocate(ARENA_NBYTES) == Block(0, ARENA_NBYTES)


def test_an_arena_of_an_odd_size_hands_out_no_byte_past_its_end() -> None:
    allocator = BlockAllocator(ALIGNMENT + 1)
    assert allocator.allocate(ALIGNMENT + 1) is None
    assert allocator.allocate(ALIGNMENT) == Block(0, ALIGNMENT)
    assert allocator.allocate(1) is None


def test_the_block_freed_is_the_one_used_next() -> None:
    # It is warm: its pages were touched.
    allocator = BlockAllocator(ARENA_NBYTES)
    first, second = allocated(allocator, 100), allocated(allocator, 100)
    allocator.free(first)
    assert allocator.allocate(100) == first
    allocator.free(second)
    assert allocator.allocate(100) == second
