"""Sort the ids of a batch into segments: a stable radix sort, restricted to the bits of the number of rows.

Ids are cut into tiles of TILE.  Digit by digit, lowest first: `count_digits` of each tile, `place_digits` says
where each tile's keys go, `move_keys` moves them in order.  Then `count_heads`, `place_heads` and `write_segments`
split the sorted keys.  The host reads nothing back; `found` = (rows, hot segments, chunks) stays on the device.
"""

import numpy as np

from ._instructions import (
    atomic_add,
    atomic_min,
    block,
    inline,
    matching,
    popcount,
    shared,
    sync_block,
    sync_warp,
    thread,
    threads,
)
from ._sharing import FULL, block_scan, first_item, items_apart
from .segment import CHUNK, SHORT

THREADS, ITEMS = 256, 8
TILE = THREADS * ITEMS
DIGITS = 256
OF_OFFSETS = 1 << 62
_WARPS = THREADS // 32
_counters = shared(DIGITS, "counters")
_warp_counters = shared(_WARPS * DIGITS, "warp_counters")
_sums = shared(_WARPS, "sums")


def first_outside(ids, n, num_rows, status, record, call):
    """Set `status` to the first position whose id is not in [0, num_rows), and `record` if no call before had one.

    A record is ``call * 2**31 + position``.
    """
    i = first_item()
    while i < n:
        if np.uint64(np.int64(ids[i])) >= np.uint64(num_rows):
            atomic_min(status, 0, np.uint64(i))
            atomic_min(record, 0, np.uint64(call) * np.uint64(1 << 31) + np.uint64(i))
        i += items_apart()


def bad_offsets(offsets, num_bags, n, status, record, call):
    """Set `status` and `record` as `first_outside` does unless offsets start at 0, never decrease, and end at n.

    In a status OF_OFFSETS is added to the position.
    """
    b = first_item()
    while b <= num_bags:
        here = np.int64(offsets[b])
        bad = here != 0 if b == 0 else here < np.int64(offsets[b - 1])
        if bad or (b == num_bags and here != n):
            atomic_min(status, 0, np.uint64(b) + np.uint64(OF_OFFSETS))
            atomic_min(record, 1, np.uint64(call) * np.uint64(1 << 31) + np.uint64(b))
        b += items_apart()


@inline
def _bag_of(offsets, num_bags, i):
    """Return the bag that occurrence i lies in."""
    low, high = np.int64(0), np.int64(num_bags)
    while high - low > 1:
        middle = (low + high) >> 1
        if np.int64(offsets[middle]) <= i:
            low = middle
        else:
            high = middle
    return low


@inline
def _label(labels, i, bag_offsets, num_bags):
    """Return the entry of `order` for an occurrence: its position or bag, and after the first turn its label."""
    if labels is not None:
        return np.int32(labels[i])
    if bag_offsets is not None:
        return np.int32(_bag_of(bag_offsets, num_bags, i))
    return np.int32(i)


def count_digits(keys, n, low, counts, tiles):
    """Count the digits, `low` bits up, of each tile, one a block; counts (DIGITS, tiles)."""
    room, t = _counters(np.int32(0)), thread()
    room[t] = 0
    sync_block()
    start = np.int64(block()) * TILE
    for k in range(ITEMS):
        i = start + k * THREADS + t
        if i < n:
            atomic_add(room, (np.int64(keys[i]) >> low) & 255, np.int32(1))
    sync_block()
    counts[np.int64(t) * tiles + block()] = room[t]


def place_digits(counts, tiles, totals):
    """Turn the counts of one digit, one a block, into sums over the tiles before; totals (DIGITS,)."""
    room, start = _sums(np.int32(0)), np.int64(block()) * tiles
    carry = np.int32(0)
    for base in range(0, tiles, threads()):
        tile = base + thread()
        value = np.int32(counts[start + tile]) if tile < tiles else np.int32(0)
        before, every = block_scan(value, room)
        if tile < tiles:
            counts[start + tile] = carry + before
        carry += every
    if thread() == 0:
        totals[block()] = carry


def move_keys(keys, labels, n, low, counts, totals, tiles, bag_offsets, num_bags, out_keys, out_labels):
    """Move the keys of a tile, one a block, to where their digit belongs, in order.

    Each warp takes consecutive keys and counts its own digits, so a key's place is known from the keys before it.
    """
    places, t = _warp_counters(np.int32(0)), thread()
    lane, warp = t & 31, t >> 5
    mine = warp * DIGITS
    for j in range(lane, DIGITS, 32):
        places[mine + j] = 0
    sync_warp(FULL)
    start = np.int64(block()) * TILE + warp * 32 * ITEMS
    for k in range(ITEMS):
        i = start + k * 32 + lane
        digit = np.int32((np.int64(keys[i]) >> low) & 255) if i < n else np.int32(DIGITS)
        same = matching(FULL, digit)
        if digit < DIGITS and popcount(same & ((1 << lane) - 1)) == 0:
            places[mine + digit] += popcount(same)
        sync_warp(FULL)
    sync_block()
    before, _ = block_scan(np.int32(totals[t]), _sums(np.int32(0)))  # keys with lower digits
    place = before + counts[np.int64(t) * tiles + block()]
    for w in range(_WARPS):
        count = places[w * DIGITS + t]
        places[w * DIGITS + t] = place
        place += count
    sync_block()
    for k in range(ITEMS):
        i = start + k * 32 + lane
        digit = np.int32((np.int64(keys[i]) >> low) & 255) if i < n else np.int32(DIGITS)
        same = matching(FULL, digit)
        rank, target = popcount(same & ((1 << lane) - 1)), 0
        if digit < DIGITS:
            target = places[mine + digit] + rank
        sync_warp(FULL)
        if digit < DIGITS:
            if rank == 0:
                places[mine + digit] += popcount(same)
            out_keys[target] = keys[i]
            out_labels[target] = _label(labels, i, bag_offsets, num_bags)
        sync_warp(FULL)


@inline
def _is_head(keys, i):
    return i == 0 or keys[i] != keys[i - 1]


@inline
def _heads_of(keys, first, n):
    """Return how many keys of a thread begin a segment."""
    heads = np.int32(0)
    for k in range(ITEMS):
        if first + k < n and _is_head(keys, first + k):
            heads += 1
    return np.int32(heads)


def count_heads(keys, n, heads):
    """Count the segments that begin in each tile, one a block."""
    first = np.int64(block()) * TILE + thread() * ITEMS
    _, every = block_scan(_heads_of(keys, first, n), _sums(np.int32(0)))
    if thread() == 0:
        heads[block()] = every


def place_heads(heads, tiles, found):
    """Turn counts into sums over the tiles before, by one block, and clear the counters of `find_hot`."""
    room, carry = _sums(np.int32(0)), np.int32(0)
    for base in range(0, tiles, threads()):
        tile = base + thread()
        value = np.int32(heads[tile]) if tile < tiles else np.int32(0)
        before, every = block_scan(value, room)
        if tile < tiles:
            heads[tile] = carry + before
        carry += every
    if thread() == 0:
        found[0], found[1], found[2] = carry, 0, 0


def write_segments(keys, n, heads, rows, offsets):
    """Write the row and the start of each segment, and the end of the last segment."""
    first = np.int64(block()) * TILE + thread() * ITEMS
    before, _ = block_scan(_heads_of(keys, first, n), _sums(np.int32(0)))
    k = np.int64(heads[block()]) + before
    for j in range(ITEMS):
        i = first + j
        if i < n:
            if _is_head(keys, i):
                rows[k], offsets[k] = keys[i], i
                k += 1
            if i == n - 1:
                offsets[k] = n


def count_up(numbers, n, found, only_rows):
    """Write 0, 1, ... n - 1 to `numbers`, and to `only_rows` the number of rows without hot segments and chunks."""
    i = first_item()
    while i < n:
        numbers[i] = i
        i += items_apart()
    if first_item() == 0:
        only_rows[0], only_rows[1], only_rows[2] = found[0], 0, 0


def find_hot(offsets, found, hot, hot_partials, chunks):
    """List the segments that a block sums, and cut those longer than CHUNK.

    hot (n // SHORT,) holds segments; hot_partials the first chunk of each, or -1; chunks (., 2) the start and
    the end of each chunk in the order.  The lists are in any order: no sum depends on it.
    """
    s = first_item()
    while s < found[0]:
        start, end = np.int64(offsets[s]), np.int64(offsets[s + 1])
        if end - start >= SHORT:
            h = atomic_add(found, 1, np.int32(1))
            hot[h], hot_partials[h] = s, -1
            if end - start > CHUNK:
                number = (end - start + CHUNK - 1) // CHUNK
                at = atomic_add(found, 2, np.int32(number))
                hot_partials[h] = at
                for j in range(number):
                    chunks[2 * (at + j)] = start + j * CHUNK
                    chunks[2 * (at + j) + 1] = min(start + (j + 1) * CHUNK, end)
        s += items_apart()
