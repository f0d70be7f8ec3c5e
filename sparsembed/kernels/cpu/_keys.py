"""Keys of few ids, sorted: an id in the high bits, its position or its bag in the low bits."""

import numpy as np

from ..._jit import inline
from ._intrinsics import bits_of
from .sort import insert

COUNTERS = 1 << 11
INSERTION = 48  # ids; up to here insertion sort is faster than radix sort, as in `_cpu.sorting`


@inline
def sorted_keys(ids, num_rows, bag_offsets, room):
    """Return where in `room` the sorted keys start, and the low bits of a key; (-1, 0) if an id is out of range.

    A key is an id in the high bits, and its position, or its bag if `bag_offsets` is not None, in the low bits.
    """
    n, bad, bag = np.uintp(ids.shape[0]), False, 0
    low = bits_of((ids.shape[0] if bag_offsets is None else bag_offsets.shape[0] - 1) - 1)
    shift = np.uint64(low)
    for i in range(n):
        key = np.uint64(ids[i])
        bad |= key >= np.uint64(num_rows)
        if bag_offsets is None:
            room[i] = key << shift | np.uint64(i)
        else:
            while np.int64(i) >= bag_offsets[bag + 1]:
                bag += 1
            room[i] = key << shift | np.uint64(bag)
    if bad:
        return -1, 0
    if n <= INSERTION:
        insert(room[:n])
        return 0, low
    bits = bits_of(num_rows - 1)
    widest = 11 if n > 2048 else 9 if n > 256 else 8
    digits = (bits + widest - 1) // widest
    width = (bits + max(digits, 1) - 1) // max(digits, 1)
    mask, counts = np.uint64((1 << width) - 1), room[2 * n :]
    source, target = np.uintp(0), n
    for digit in range(digits):
        place = np.uint64(low + digit * width)
        for k in range(1 << width):
            counts[k] = 0
        for i in range(source, source + n):
            counts[np.uintp(room[i] >> place & mask)] += np.uint64(1)
        total = np.uint64(target)
        for k in range(1 << width):
            count = counts[k]
            counts[k] = total
            total += count
        for i in range(source, source + n):
            key = room[i]
            k = np.uintp(key >> place & mask)
            room[np.uintp(counts[k])] = key
            counts[k] += np.uint64(1)
        source, target = target, source
    return np.intp(source), low


@inline
def end_of_run(keys, first, shift):
    """Return the end of the run of one row that starts at `first`."""
    last = first + 1
    while last < keys.shape[0] and keys[last] >> shift == keys[first] >> shift:
        last += 1
    return last


@inline
def num_runs(keys, shift, skip):
    """Return the number of different rows, without `skip`."""
    count = 0
    for p in range(keys.shape[0]):
        count += (p == 0 or keys[p - 1] >> shift != keys[p] >> shift) and np.int64(keys[p] >> shift) != skip
    return count
