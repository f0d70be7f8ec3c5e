"""Norms of rows in float64, and rows scaled down to a largest norm, as on the CPU."""

from math import inf, sqrt

import numpy as np

from ._instructions import inline, shuffle_xor, sync_warp
from ._sharing import NONE, group_of, groups, mask_of, member_of

_SMALL = 2.0**-900  # sums of squares from here on have lost nothing to underflow


@inline
def _over_group(value, largest, shift):
    """Return the sum over the group, or the largest value; NaN wins."""
    mask, distance = mask_of(shift), (1 << shift) >> 1
    while distance > 0:
        other = shuffle_xor(mask, value, distance)
        if not largest:
            value = value + other
        elif other > value or other != other:
            value = other
        distance >>= 1
    return value


@inline
def _row_norm(array, start, dim, p, shift):
    """Return the p-norm of a row; NaN if a number is not finite."""
    if p == 2:
        total, c = 0.0, member_of(shift)
        while c < dim:  # no range: the length of one costs a 64-bit division, as the step is no constant
            total += np.float64(array[start + c]) * np.float64(array[start + c])
            c += 1 << shift
        total = _over_group(total, False, shift)
        if _SMALL < total < inf:
            return sqrt(total)
    largest, c = 0.0, member_of(shift)
    while c < dim:
        number = abs(np.float64(array[start + c]))
        if number > largest or number != number:
            largest = number
        c += 1 << shift
    largest = _over_group(largest, True, shift)
    if largest == 0 or largest - largest != 0:
        return largest - largest
    if p == inf:
        return largest
    total, c = 0.0, member_of(shift)
    while c < dim:  # relative to the largest number, so that no power over- or underflows
        number = abs(np.float64(array[start + c])) / largest
        total += number if p == 1 else number**p
        c += 1 << shift
    return largest * _over_group(total, False, shift) ** (1 / p)


def clip_rows(array, rows, n, found, dim, skip, most, p, extra, share, shift, status):
    """Scale down rows whose norm is above `most`, in place.

    The rows are the first ``found[0]`` of `rows` (n,), or the first n of the array if `rows` is None.  `share` allows
    for rounding, so that a row that was scaled once is not scaled again.
    """
    if status[0] != NONE:
        return
    count, j = n if found is None else np.int64(found[0]), group_of(shift)
    while j < count:
        r = j if rows is None else np.int64(rows[j])
        if r != skip:
            norm = _row_norm(array, r * dim, dim, p, shift)
            sync_warp(mask_of(shift))
            if norm > most:
                scale = most / (norm + extra) * share
                c = member_of(shift)
                while c < dim:
                    array[r * dim + c] = scale * array[r * dim + c]
                    c += 1 << shift
        j += groups(shift)
