"""Sort the ids of a batch into segments: a stable radix sort that any number of threads shares.

Threads claim blocks of ids, phase after phase; a phase starts when all blocks of the previous phase are done.
The digits of each block are counted separately.  From the counts of all blocks a block knows where to write its keys,
so the sort is stable for any number of blocks.
"""

import numpy as np

from ..._jit import inline, kernel
from ._intrinsics import clear, last_at_most
from ._sharing import claim, enter, finish, leave, wait


@kernel
def first_outside(ids, num_rows):
    """Return the first position whose id is not in [0, num_rows), or -1."""
    bad = False
    for i in range(ids.shape[0]):  # no early exit, so that it vectorises
        bad |= np.uint64(ids[i]) >= np.uint64(num_rows)
    if bad:
        for i in range(ids.shape[0]):
            if np.uint64(ids[i]) >= np.uint64(num_rows):
                return i
    return -1


@inline
def _bag_of(offsets, i):
    """Return the bag that occurrence i lies in."""
    return last_at_most(offsets, i)


@inline
def _pack(ids, first, last, num_rows, bag_offsets, by_label, shift, keys, counts, mask):
    """Make keys of a block and count their lowest digits; return whether an id is out of range."""
    bad = False
    bag, end = 0, 0
    if bag_offsets is not None and by_label is None and first < last:
        bag = _bag_of(bag_offsets, first)
        end = bag_offsets[bag + 1]
    for i in range(np.uintp(first), np.uintp(last)):  # unsigned: an index that may be negative costs a test
        key = np.uint64(ids[i] if by_label is None else ids[by_label[i]])
        bad |= key >= np.uint64(num_rows)
        counts[np.uintp(key & mask)] += 1
        if bag_offsets is None or by_label is not None:
            keys[i] = key << np.uint64(shift) | np.uint64(i)
        else:
            while i >= end:
                bag += 1
                end = bag_offsets[bag + 1]
            keys[i] = key << np.uint64(shift) | np.uint64(bag)
    return bad


@inline
def _count(keys, first, last, low, mask, counts):
    """Count the digits of a block; a digit starts at bit `low`."""
    clear(counts)
    for i in range(np.uintp(first), np.uintp(last)):
        counts[np.uintp(keys[i] >> low & mask)] += 1


@inline
def _places(block, counts, places):
    """Set the position of the first key of a block for each digit."""
    total = 0
    for digit in range(counts.shape[1]):
        places[digit] = total
        for other in range(counts.shape[0]):
            if other < block:
                places[digit] += counts[other, digit]
            total += counts[other, digit]


@inline
def _scatter(keys, first, last, low, mask, places, spare):
    """Write each key to the next position of its digit, which starts at bit `low`."""
    for i in range(np.uintp(first), np.uintp(last)):
        key = keys[i]
        digit = np.uintp(key >> low & mask)
        place = places[digit]
        places[digit] = place + 1
        spare[np.uintp(place)] = key


@inline
def insert(keys):
    """Sort keys in place, by insertion."""
    for i in range(1, keys.shape[0]):
        key, j = keys[i], i
        while j > 0 and keys[j - 1] > key:
            keys[j] = keys[j - 1]
            j -= 1
        keys[j] = key


@inline
def _entry(low, bag_offsets, by_label):
    """Return the entry of `order`, the position or the bag, given the low bits of the key."""
    if by_label is None:
        return low
    i = np.uint64(by_label[low])
    return i if bag_offsets is None else np.uint64(_bag_of(bag_offsets, np.int64(i)))


@inline
def _write_segments(keys, first, last, shift, k, bag_offsets, by_label, rows, order, offsets, longer):
    """Split the sorted keys of a block; return how many of its segments are longer than `longer`."""
    n, longer, hot = np.uintp(keys.shape[0]), np.uintp(longer), 0
    mask, shift = np.uint64((1 << shift) - 1), np.uint64(shift)
    previous = keys[first - 1] >> shift if first > 0 else ~np.uint64(0)
    k = np.uintp(k)
    for i in range(np.uintp(first), np.uintp(last)):
        row = keys[i] >> shift
        order[i] = _entry(keys[i] & mask, bag_offsets, by_label)
        if row != previous:
            rows[k], offsets[k] = row, i
            if i + longer < n and keys[i + longer] >> shift == row:
                hot += 1
            previous = row
            k += np.uintp(1)
    if last == keys.shape[0]:
        offsets[k] = last
    return hot


@kernel
def sort_ids(
    claims,
    num_blocks,
    block_size,
    ids,
    num_rows,
    bag_offsets,
    by_label,
    radix,
    keys,
    spare,
    counts,
    places,
    phases,
    rows,
    order,
    offsets,
    longer,
    found,
):
    """Sort ids (n,) into `rows`, `order` and `offsets`, unless one is out of range.

    `order` holds the position of each occurrence, or its bag if `bag_offsets` is not None.  Equal ids are in the order
    of the permutation `by_label` (n,), or of their positions if it is None.

    A key is an id in the high bits, and its place in that order, or its bag, in the low bits.  `radix` = (low bits,
    number of digits of an id, bits of a digit), with no digits for insertion sort.

    `keys` and `spare` (n,) uint64: the sorted keys end in `keys` for an even number of digits, else in `spare`; `order`
    and `offsets` may share the memory of the other.  `counts` and `places` (blocks, 2 ** width) of zeros; `phases`
    (2 + 2 * digits, SLOTS) of zeros; `found` (blocks, 3): for each block, whether an id is out of range, the number of
    rows, and the number of segments longer than `longer`.
    """
    enter(claims)
    n = ids.shape[0]
    shift, digits, width = radix
    mask = np.uint64((1 << width) - 1)
    phase = 0
    block = claim(phases[phase])
    while block < num_blocks:
        first, last = block * block_size, min((block + 1) * block_size, n)
        found[block, 0] = _pack(ids, first, last, num_rows, bag_offsets, by_label, shift, keys, counts[block], mask)
        finish(phases[phase])
        block = claim(phases[phase])
    wait(phases[phase], num_blocks)
    for block in range(num_blocks):
        if found[block, 0]:
            digits = -1  # out of range: nothing to sort
    for digit in range(digits):
        low = np.uint64(shift + digit * width)
        if digit > 0:
            phase += 1
            block = claim(phases[phase])
            while block < num_blocks:
                first, last = block * block_size, min((block + 1) * block_size, n)
                _count(keys, first, last, low, mask, counts[block])
                finish(phases[phase])
                block = claim(phases[phase])
            wait(phases[phase], num_blocks)
        phase += 1
        block = claim(phases[phase])
        while block < num_blocks:
            first, last = block * block_size, min((block + 1) * block_size, n)
            _places(block, counts, places[block])
            _scatter(keys, first, last, low, mask, places[block], spare)
            finish(phases[phase])
            block = claim(phases[phase])
        wait(phases[phase], num_blocks)
        keys, spare = spare, keys
    phase += 1
    block = claim(phases[phase])
    while block < num_blocks:
        if digits == 0:  # one block
            insert(keys)
        heads, one = 0, np.uintp(1)
        for i in range(np.uintp(max(block * block_size, 1)), np.uintp(min((block + 1) * block_size, n))):
            heads += keys[i] >> np.uint64(shift) != keys[i - one] >> np.uint64(shift)
        found[block, 1] = heads + (block == 0 and n > 0)
        finish(phases[phase])
        block = claim(phases[phase])
    wait(phases[phase], num_blocks)
    block = claim(claims)
    while block < num_blocks:
        first, last, k = min(block * block_size, n), min((block + 1) * block_size, n), 0
        for before in range(block):
            k += found[before, 1]
        if digits >= 0:
            where = (keys, first, last, shift, k, bag_offsets, by_label)
            found[block, 2] = _write_segments(*where, rows, order, offsets, longer)
        block = claim(claims)
    leave(claims)


@kernel
def find_hot(offsets, longer, hot):
    """Write the indices of the segments that are longer than `longer` to `hot`."""
    h = 0
    for s in range(offsets.shape[0] - 1):
        if offsets[s + 1] - offsets[s] > longer:
            hot[h] = s
            h += 1
