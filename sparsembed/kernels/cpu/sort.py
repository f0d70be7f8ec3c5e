"""Sort the ids of a batch into segments: a stable radix sort that any number of threads shares.

Threads claim blocks of ids, phase after phase; a phase starts when all blocks of the one before it are done.
Each block counts its own digits, so it knows where its keys go, and the order is that of the ids whatever the
number of blocks.
"""

import numpy as np

from ..._jit import inline, kernel
from ._intrinsics import clear
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
    return np.searchsorted(offsets, i, side="right") - 1


@inline
def _pack(ids, first, last, num_rows, bag_offsets, by_label, shift, keys, counts, mask):
    """Put each id above what follows it in a key, count lowest digits, return whether all ids are in range."""
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
    """Count the digits, `low` bits up, of a block."""
    clear(counts)
    for i in range(np.uintp(first), np.uintp(last)):
        counts[np.uintp(keys[i] >> low & mask)] += 1


@inline
def _places(block, counts, places):
    """Set where the keys of a block go, by digit."""
    total = 0
    for digit in range(counts.shape[1]):
        places[digit] = total
        for other in range(counts.shape[0]):
            if other < block:
                places[digit] += counts[other, digit]
            total += counts[other, digit]


@inline
def _scatter(keys, first, last, low, mask, places, spare):
    """Move keys to where their digit, `low` bits up, belongs."""
    for i in range(np.uintp(first), np.uintp(last)):
        key = keys[i]
        digit = np.uintp(key >> low & mask)
        place = places[digit]
        places[digit] = place + 1
        spare[np.uintp(place)] = key


@inline
def _insert(keys):
    """Insertion sort."""
    for i in range(1, keys.shape[0]):
        key, j = keys[i], i
        while j > 0 and keys[j - 1] > key:
            keys[j] = keys[j - 1]
            j -= 1
        keys[j] = key


@inline
def _entry(low, bag_offsets, by_label):
    """Return what `order` holds of an occurrence, given what follows its id in the key."""
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

    `order` holds the position of an occurrence, or its bag if `bag_offsets` is not None.  Equal ids are in the order of
    `by_label` (n,), which holds the position of each occurrence once, or of their positions if it is None.  A key is an
    id above its place in that order, or its bag.  `radix` = (bits of the latter, digits of an id to sort by, bits of a
    digit), no digit for insertion; `keys` and
    `spare` (n,) uint64, of which `order` and `offsets` may share the memory of the one that the sorted keys do
    not end up in; `counts` and `places` (blocks, 2 ** width) of zeros; `phases` (2 + 2 * digits, SLOTS) of zeros;
    `found` (blocks, 3): whether a block has ids out of range, its rows, its segments longer than `longer`.
    """
    if not enter(claims):
        return
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
            _insert(keys)
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
        finish(claims)
        block = claim(claims)
    leave(claims, num_blocks)


@kernel
def find_hot(offsets, longer, hot):
    """List the segments that are longer than `longer` in `hot`."""
    h = 0
    for s in range(offsets.shape[0] - 1):
        if offsets[s + 1] - offsets[s] > longer:
            hot[h] = s
            h += 1
