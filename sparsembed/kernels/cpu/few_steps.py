"""Whole calls of few ids, each in one kernel: check, sort, sum the gradients of repeated ids, and update.

A kernel that finds an id out of range returns before it has written anything; the caller then repeats the call step by
step, for the message.  `room` (2 n + COUNTERS,) uint64 is memory for keys, which need no initial value.

One thread does the work.  Sums have the same bits as those of `sort`, `segment` and `update`.
"""

import numpy as np

from ..._jit import inline, kernel
from ._intrinsics import clear, copy, overlap, prefetch_bytes, row_address, row_at
from ._keys import end_of_run, num_runs, sorted_keys
from ._rows import is_whole
from .catch_up import STEP, Missed, catch_up_row, restart
from .norm import clip_row
from .pool import expand_bags, share_bags
from .segment import CHUNK
from .update import update_row

_AHEAD, _LINES = 6, 96  # prefetch distances: of rows that have missed steps, in ids; of updates, in cache lines
FOUND, OUTSIDE, SHARED = 0, 1, 2  # what kernels return: done; an id is out of range; gradients lie in the table


@inline
def _row_of(key, mask, bag_of):
    """Return the row of the gradients that a key stands for: its low bits, or the bag of that occurrence."""
    i = np.intp(key & mask)
    return i if bag_of is None else np.intp(bag_of[i])


@inline
def _add_run(total, keys, first, last, mask, grads, shares, bag_of):
    """Set `total` to the sum of a run of gradients, in the order of the batch."""
    clear(total)
    for p in range(first, last):
        i, row = np.intp(keys[p] & mask), _row_of(keys[p], mask, bag_of)
        if shares is None:
            for c in range(total.shape[0]):
                total[c] += grads[row, c]
        elif shares[i] != 0:  # skip a factor of 0, since 0 * NaN is NaN
            for c in range(total.shape[0]):
                total[c] += shares[i] * grads[row, c]


@inline
def _sum_run(total, part, keys, first, last, mask, grads, shares, bag_of, by_count):
    """Return the address of the sum of the gradients of one row; long runs are summed in chunks."""
    if last - first == 1 and shares is None:
        return row_address(grads, np.intp(keys[first] & mask))
    hot = last - first > CHUNK
    if hot:
        clear(total)
    for start in range(first, last, CHUNK):  # one place of `_add_run`: two take 0.4 s longer to compile
        _add_run(part, keys, start, min(start + CHUNK, last), mask, grads, shares, bag_of)
        if hot:
            for c in range(total.shape[0]):
                total[c] += part[c]
    found = total if hot else part
    if by_count is not None:
        count = total.dtype.type(last - first)
        for c in range(total.shape[0]):
            found[c] /= count
    return row_address(found, 0)


@kernel
def update_few(
    ids,
    bag_offsets,
    mode,
    weights,
    grads,
    weight,
    state,
    row_state,
    steps,
    room,
    shares,
    bag_of,
    scratch,
    skip,
    by_count,
    missed,
    limit,
    hp,
):
    """Update the row of every id except `skip`, and count the step; return FOUND, OUTSIDE or SHARED.

    ids (n,); bag_offsets (num_bags + 1,) of pooled lookups, or None; grads (n, dim), or (num_bags, dim).  Bags with
    `weights` (n,) have memory for the factor and the bag of each id: shares (n,) and bag_of (n,); other bags have
    shares (num_bags,) for modes other than SUM.  What is not used is None.  by_count is PRESENT or None; scratch
    (4, padded) holds zeros; the others are as in `update_rows`.
    """
    n, dim, num_rows = ids.shape[0], weight.shape[1], weight.shape[0]
    if overlap(grads, weight):
        return SHARED
    if bag_of is None:
        start, low = sorted_keys(ids, num_rows, bag_offsets, room)
    else:
        start, low = sorted_keys(ids, num_rows, None, room)
    if start < 0:
        return OUTSIDE
    if bag_of is not None:
        expand_bags(ids, bag_offsets, weights, mode, skip, bag_of, shares)
    elif shares is not None:
        share_bags(ids, bag_offsets, mode, skip, shares)
    keys, shift, mask = room[start : start + n], np.uint64(low), np.uint64((1 << low) - 1)
    lines = dim * weight.itemsize * (2 + state.shape[1]) // 64 + 1
    ahead = min(max(_LINES // lines, 4), 16)
    total, part, terms, others = scratch[0, :dim], scratch[1, :dim], scratch[2], scratch[3]
    whole = missed is not None and Missed(*missed).by_step and is_whole(num_runs(keys, shift, skip), num_rows)
    first, row = 0, np.uint64(0)
    while row < np.uint64(num_rows) if whole else first < n:
        if not whole:
            row = keys[first] >> shift
        last = end_of_run(keys, first, shift) if first < n and keys[first] >> shift == row else first
        if last > first and last + ahead < n:
            soon = np.intp(keys[last + ahead] >> shift)
            prefetch_bytes(row_address(weight, soon), dim * weight.itemsize)
            prefetch_bytes(row_address(state, soon), dim * state.shape[1] * weight.itemsize)
            prefetch_bytes(row_address(grads, _row_of(keys[last + ahead], mask, bag_of)), dim * weight.itemsize)
        taken = last > first and np.int64(row) != skip
        if taken or whole:
            found = row_address(scratch, 2)
            if taken:
                found = _sum_run(total, part, keys, first, last, mask, grads, shares, bag_of, by_count)
            where = row_at(found, dim, total)
            update_row(weight, state, row_state, np.uintp(row), where, terms, others, 0, missed, hp)
            if limit is not None:
                clip_row(weight, np.uintp(row), limit, 0)
        first, row = last, row + np.uint64(1)
    steps[STEP] += 1  # in this kernel, so that an interrupt cannot separate rows and step
    if whole:
        restart(steps, steps[STEP])
    return FOUND


@kernel
def sort_few(ids, num_rows, bag_offsets, room, rows, order, offsets):
    """Sort ids into `rows`, `order` and `offsets`, as `sort_ids`; return the number of rows.

    Returns -1 if an id is out of range, and -2 if a segment is hot, that is longer than CHUNK.
    """
    n = ids.shape[0]
    start, low = sorted_keys(ids, num_rows, bag_offsets, room)
    if start < 0:
        return -1
    keys, shift, mask = room[start : start + n], np.uint64(low), np.uint64((1 << low) - 1)
    k, hot = np.uintp(0), False
    for p in range(np.uintp(n)):
        row = keys[p] >> shift
        order[p] = keys[p] & mask
        if p == 0 or keys[p - np.uintp(1)] >> shift != row:
            rows[k], offsets[k] = row, p
            hot |= p + np.uintp(CHUNK) < np.uintp(n) and keys[p + np.uintp(CHUNK)] >> shift == row
            k += np.uintp(1)
    offsets[k] = n
    return -2 if hot else np.int64(k)


@kernel
def sum_few(ids, grads, num_rows, skip, by_count, room, scratch, rows, values):
    """Write the rows of a batch but `skip`, and the sum of the gradients of each; return how many, or -1 as `sort_few`.

    rows (n,), values (n, dim); scratch (dim,).
    """
    n, dim = ids.shape[0], values.shape[1]
    start, low = sorted_keys(ids, num_rows, None, room)
    if start < 0:
        return -1
    keys, shift, mask = room[start : start + n], np.uint64(low), np.uint64((1 << low) - 1)
    k = first = 0
    while first < n:
        row, last = keys[first] >> shift, end_of_run(keys, first, shift)
        if np.int64(row) != skip:
            found = _sum_run(values[k], scratch, keys, first, last, mask, grads, None, None, by_count)
            if found != row_address(values, k):
                copy(row_address(values, k), found, dim * values.itemsize)
            rows[k] = row
            k += 1
        first = last
    return k


@kernel
def read_few(ids, weight, state, missed, hp, out):
    """Write the rows of ids (n,), with the steps that they have missed, to out (n, dim); return FOUND or OUTSIDE."""
    num_bytes, num_rows = out.shape[1] * out.itemsize, np.uintp(weight.shape[0])
    for i in range(ids.shape[0]):
        r = np.uintp(ids[i])
        if r >= num_rows:
            return OUTSIDE  # `out` is new, and is given up
        if i + _AHEAD < ids.shape[0]:
            soon = np.uintp(ids[i + _AHEAD])
            prefetch_bytes(row_address(weight, soon), num_bytes)
            prefetch_bytes(row_address(state, soon), num_bytes * state.shape[1])
        catch_up_row(weight, state, r, 0, missed, False, hp)
        copy(row_address(out, i), row_address(Missed(*missed).rows, 0), num_bytes)
    return FOUND
