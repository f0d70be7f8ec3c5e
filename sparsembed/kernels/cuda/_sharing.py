"""How threads share rows: groups of ``2**shift`` lanes of a warp, each with a row to itself."""

import numpy as np

from ._instructions import block, blocks, inline, shuffle_up, shuffle_xor, sync_block, thread, threads

FULL = 0xFFFFFFFF  # all lanes of a warp
NONE = 0xFFFFFFFFFFFFFFFF  # a status: all ids are in range


@inline
def member_of(shift):
    """The number of the thread in its group."""
    return thread() & ((1 << shift) - 1)


@inline
def group_of(shift):
    """The group's number in the grid."""
    return (np.int64(block()) * threads() + thread()) >> shift


@inline
def groups(shift):
    """Groups in the grid."""
    return (np.int64(blocks()) * threads()) >> shift


@inline
def mask_of(shift):
    """The lanes of this thread's group, as bits."""
    size = 1 << shift
    return (FULL >> (32 - size)) << (thread() & 31 & -size)


@inline
def group_sum(value, shift):
    """Return the sum over the group: the same bits in every lane of the group."""
    mask, distance = mask_of(shift), (1 << shift) >> 1
    while distance > 0:
        value = value + shuffle_xor(mask, value, distance)
        distance >>= 1
    return value


@inline
def first_item():
    """The number of the thread in the grid."""
    return np.int64(block()) * threads() + thread()


@inline
def items_apart():
    """Threads in the grid."""
    return np.int64(blocks()) * threads()


@inline
def block_scan(value, room):
    """Return the sum over the threads before this one, and the sum over all; `room` is shared memory of the block."""
    lane, warp = thread() & 31, thread() >> 5
    total, distance = value, 1
    while distance < 32:
        below = shuffle_up(FULL, total, distance)
        if lane >= distance:
            total = np.int32(total + below)
        distance <<= 1
    if lane == 31:
        room[warp] = total
    sync_block()
    before, every = np.int32(0), np.int32(0)
    for w in range(threads() >> 5):
        if w == warp:
            before = every
        every = np.int32(every + room[w])
    sync_block()  # so that `room` can be used again
    return np.int32(before + total - value), every
