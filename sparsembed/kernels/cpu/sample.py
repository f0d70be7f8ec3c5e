"""Draw ids from a discrete distribution: an alias table, random numbers by counter, and sets of excluded ids.

Random numbers are those of Philox4x32-10: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3",
SC 2011, https://doi.org/10.1145/2063384.2063405.  No operation on 64 bits overflows, so plain Python has the same.
"""

import numpy as np

from ..._jit import inline, kernel
from ._intrinsics import prefetch_line, row_address
from ._sharing import WRONG, claim, enter, leave, within

_SHIFT, _MASK, _ONE = np.uint64(32), np.uint64(0xFFFFFFFF), np.uint64(1)
_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_MIX = np.uint64(0x85EBCA6B), np.uint64(0xC2B2AE35)
_SHIFTS = np.uint64(16), np.uint64(13)
_BITS, _MARK = np.uint64(7), np.uint8(1)
FULL = 1 << 32  # what a slot of the alias table holds, in quanta
ATTEMPTS = 128  # a history of 9/10 of all draws is left once in 700,000 times
LEFT = np.uint64(2**64 - 1)  # in the place of an id: all attempts were rejected
# Pairs of draws between the prefetch of a slot and its reading.  One prefetch with each read takes 4 to 6 ns, all of a
# chunk first 9 to 15, none 7 to 18 (a million slots, a busy machine).
_CHUNK = 64


@kernel
def alias_table(quanta, table):
    """Write the alias table (n,) of ids with whole numbers of quanta (n,), n * FULL together.

    An entry is ``threshold << 32 | alias``: slot i gives i to coins below its threshold, and its alias to others.
    One sweep in the order of the ids: the heavy id j in hand fills light slots, until it is light itself; then the
    next heavy id fills its slot.
    """
    n = quanta.shape[0]
    i = j = 0
    while j < n and quanta[j] <= FULL:
        j += 1
    hand = quanta[j] if j < n else 0
    while j < n:
        if hand > FULL:  # then some slot is light, for slots and quanta that are left have the same sum
            while quanta[i] > FULL:
                i += 1
            light = quanta[i]
            table[i] = np.uint64(i) if light == FULL else (np.uint64(light) << _SHIFT) | np.uint64(j)
            hand -= FULL - light
            i += 1
        else:
            heavy = j + 1
            while heavy < n and quanta[heavy] <= FULL:
                heavy += 1
            if heavy == n:  # the last one: it is full, and so are light slots that are left
                table[j] = np.uint64(j)
            else:
                table[j] = np.uint64(j) if hand == FULL else (np.uint64(hand) << _SHIFT) | np.uint64(heavy)
                hand = quanta[heavy] - (FULL - hand)
            j = heavy
    for rest in range(i, n):
        if quanta[rest] <= FULL:
            table[rest] = np.uint64(rest)


@inline
def random_pair(pair, attempt, draw, seed):
    """Return 2 numbers of 64 bits: those of positions 2 * pair and 2 * pair + 1."""
    a, b = pair & _MASK, (pair >> _SHIFT) | (attempt << _SHIFTS[0])
    c, d = draw & _MASK, draw >> _SHIFT
    key, other = seed & _MASK, seed >> _SHIFT
    for _ in range(10):
        first, second = _MULTIPLIERS[0] * a, _MULTIPLIERS[1] * c
        a, b, c, d = (second >> _SHIFT) ^ b ^ key, second & _MASK, (first >> _SHIFT) ^ d ^ other, first & _MASK
        key, other = (key + _WEYL[0]) & _MASK, (other + _WEYL[1]) & _MASK
    return a | (b << _SHIFT), c | (d << _SHIFT)


@inline
def _scaled(number, n):
    """Return ``number * n >> 32``: above its 32 low bits, the coin, a slot below n."""
    return (number >> _SHIFT) * n + (((number & _MASK) * n) >> _SHIFT)


@inline
def _id_of(table, place):
    """Return the id of a slot and a coin."""
    slot = place >> _SHIFT
    entry = table[slot]
    return slot if (place & _MASK) < (entry >> _SHIFT) else entry & _MASK


@inline
def _hash(i):
    """Return 32 bits: the finalizer of MurmurHash3, by Appleby."""
    h = np.uint64(i)
    h = ((h ^ (h >> _SHIFTS[0])) * _MIX[0]) & _MASK
    h = ((h ^ (h >> _SHIFTS[1])) * _MIX[1]) & _MASK
    return h ^ (h >> _SHIFTS[0])


@inline
def _first(h, size):
    """Return where in a set of `size` places an id of this hash is looked for first."""
    return np.int64((h * np.uint64(size)) >> _SHIFT)


@inline
def _place(i, places, start, size):
    """Return the place of an id in a set, or the free one where it would be; half of the places are free."""
    at = _first(_hash(i), size)
    while places[start + at] >= 0 and places[start + at] != i:
        at = at + 1 if at + 1 < size else 0
    return start + at


@kernel
def exclude(claims, num_blocks, block_size, ids, offsets, below, places, marks, full):
    """Write the set of the ids of each row, and whether all quanta are theirs.

    Row r has ``ids[offsets[r]:offsets[r + 1]]``, and twice as many places, which are -1, and marks of 8 bits, which are
    0; ``below`` (n + 1,) are the quanta below each id.
    """
    enter(claims)
    num_rows, n = offsets.shape[0] - 1, below.shape[0] - 1
    block = claim(claims)
    while block < num_blocks:
        for r in range(block * block_size, min((block + 1) * block_size, num_rows)):
            start, stop = offsets[r], offsets[r + 1]
            left = below[n]
            for k in range(start, stop):
                i = np.int64(within(ids[k], n, claims))
                since, size, h = 2 * start, 2 * (stop - start), _hash(i)
                at = _place(i, places, since, size)
                if places[at] < 0:
                    places[at] = i
                    marks[since + _first(h, size)] |= np.uint8(1) << np.uint8(h & _BITS)
                    left -= below[i + 1] - below[i]
            full[r] = left == 0
        block = claim(claims)
    leave(claims)


@kernel
def sample(claims, num_blocks, block_size, table, seed, draw, excluded, out):
    """Write draws to `out`, whose length is even; block_size counts pairs of draws.

    excluded : None, or (keys, k, offsets, places, marks): draw i is of row i // k, and no id of the set of its key.
    Sets are read one chunk after their marks are prefetched: 83 ns a draw, not 116 (a million ids, 100,000 sets of 20,
    a busy machine on which a draw without sets took 16).
    """
    enter(claims)
    n, num_pairs = np.uint64(table.shape[0]), out.shape[0] // 2
    block = claim(claims)
    while block < num_blocks:
        first, stop = block * block_size, min((block + 1) * block_size, num_pairs)
        start, until = first - _CHUNK, stop if excluded is None else stop + _CHUNK  # sets are read a chunk later
        while start < until:
            end, last = min(start + _CHUNK, stop), min(start + 2 * _CHUNK, stop)
            part, later = out[2 * min(max(start, first), stop) : 2 * end], out[2 * end : 2 * last]
            _write_numbers(end, later, n, draw, seed)
            _read_ids(part, later, table)
            if excluded is not None:
                _prefetch_sets(2 * start, part, excluded)
                if start > first:
                    before = out[2 * (start - _CHUNK) : 2 * min(start, stop)]
                    if _redraw(2 * (start - _CHUNK), before, table, seed, draw, excluded):
                        claims[WRONG] = 1
            start += _CHUNK
        block = claim(claims)
    leave(claims)


@inline
def _write_numbers(start, part, n, draw, seed):
    """Write slots and coins of the pairs from `start` on."""
    # Indices that begin at 0 are never negative, so this vectorises: 2.4 ns a draw, else 12.
    for pair in range(part.shape[0] // 2):
        one, two = random_pair(np.uint64(start + pair), np.uint64(0), draw, seed)
        part[2 * pair] = _scaled(one, n)
        part[2 * pair + 1] = _scaled(two, n)


@inline
def _read_ids(part, later, table):
    """Replace slots and coins by ids; prefetch the slots of the chunk after this."""
    middle = min(part.shape[0], later.shape[0])
    for i in range(middle):
        prefetch_line(row_address(table, np.intp(later[i] >> _SHIFT)))
        part[i] = _id_of(table, part[i])
    for i in range(middle, part.shape[0]):
        part[i] = _id_of(table, part[i])


@inline
def _prefetch_sets(start, part, excluded):
    """Prefetch the marks of the draws from `start` on, and the offsets of a later chunk."""
    keys, k, offsets, _, marks = excluded
    row, j, rows_ahead = start // k, 0, 2 * _CHUNK // k + 1
    stop = min(k - start % k, part.shape[0])
    while j < part.shape[0] and row < keys.shape[0]:
        if row + rows_ahead < keys.shape[0]:
            prefetch_line(row_address(offsets, keys[row + rows_ahead]))
        since = 2 * offsets[keys[row]]
        size = 2 * offsets[keys[row] + 1] - since
        while j < stop:
            prefetch_line(row_address(marks, since + _first(_hash(part[j]), size)))
            j += 1
        row, stop = row + 1, min(stop + k, part.shape[0])


@inline
def _redraw(start, part, table, seed, draw, excluded):
    """Draw again what is excluded of the draws from `start` on; return whether something is left."""
    keys, k, offsets, places, marks = excluded
    n, left = np.uint64(table.shape[0]), False
    row, j = start // k, 0
    stop = min(k - start % k, part.shape[0])
    while j < part.shape[0] and row < keys.shape[0]:  # there may be one draw more
        since = 2 * offsets[keys[row]]
        size = 2 * offsets[keys[row] + 1] - since
        if size == 0:
            j = stop
        while j < stop:
            h = _hash(part[j])
            if (marks[since + _first(h, size)] >> np.uint8(h & _BITS)) & _MARK:
                attempt = 0
                while places[_place(np.int64(part[j]), places, since, size)] >= 0:
                    attempt += 1
                    if attempt == ATTEMPTS:
                        part[j] = LEFT
                        left = True
                        break
                    one, two = random_pair(np.uint64((start + j) // 2), np.uint64(attempt), draw, seed)
                    part[j] = _id_of(table, _scaled(two if j % 2 else one, n))
            j += 1
        row, stop = row + 1, min(stop + k, part.shape[0])
    return left
