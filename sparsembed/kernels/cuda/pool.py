"""Pool the rows of bags, and carry gradients from bags back to occurrences and weights.

Shared names: `ids` (n,), `offsets` (num_bags + 1,), `weights` (n,) per-sample weights or None,
`padding` the id to leave out or -1, `mode` one of SUM, MEAN, SQRTN, MAX; if `gathered` is not None, weight (n, dim)
has a row for each occurrence.
"""

from math import sqrt

import numpy as np

from ._instructions import (
    add,
    cast,
    divide,
    first,
    inline,
    lanewise,
    load,
    load_once,
    multiply,
    save,
    save_once,
    second,
    sync_warp,
)
from ._sharing import NONE, first_item, group_of, groups, items_apart, mask_of, member_of
from .dot import dot_at

SUM, MEAN, SQRTN, MAX = 0, 1, 2, 3


@inline
def _divisor(ids, start, end, weights, mode, padding, zero):
    """Return the divisor of the weighted sum of a bag; 0 if there is nothing to pool.

    The sums are compensated, in the dtype of the table; the CPU sums in float64.
    """
    one = cast(1, zero)
    if mode == SUM:
        return one
    if weights is None:
        count = end - start
        if padding >= 0:
            count = 0
            for p in range(start, end):
                count += 1 if ids[p] != padding else 0
        total, rest = cast(count, zero), zero
    else:
        total, rest = zero, zero
        for p in range(start, end):
            if ids[p] != padding:
                factor = weights[p] * weights[p] if mode == SQRTN else weights[p]
                larger = total + factor
                part = larger - total
                rest += (total - (larger - part)) + (factor - part)
                total = larger
    total = total + rest
    return cast(sqrt(total), zero) if mode == SQRTN else total


@inline
def _weighted(weight, stride, gathered, ids, c, p, weights, zero):
    r = np.int64(ids[p]) if gathered is None else np.int64(p)
    part = load_once(weight, r * stride + c, zero)
    return part if weights is None else multiply(part, weights[p])


@inline
def _add_rows(total, weight, stride, gathered, ids, start, end, weights, padding, c):
    """Add the rows of one bag, in order."""
    p = start
    if padding < 0:
        while p + 3 < end:  # four rows in flight
            q, s, t = p + 1, p + 2, p + 3
            a = _weighted(weight, stride, gathered, ids, c, p, weights, total)
            b = _weighted(weight, stride, gathered, ids, c, q, weights, total)
            d = _weighted(weight, stride, gathered, ids, c, s, weights, total)
            e = _weighted(weight, stride, gathered, ids, c, t, weights, total)
            total = add(add(add(add(total, a), b), d), e)
            p += 4
    while p < end:
        if ids[p] != padding:
            total = add(total, _weighted(weight, stride, gathered, ids, c, p, weights, total))
        p += 1
    return total


def pool_rows(weight, stride, gathered, ids, offsets, num_bags, weights, mode, padding, dim, out, zero, shift, status):
    """Write the sum, mean or sqrtn of each bag's rows to `out` (num_bags, dim)."""
    if status[0] != NONE:
        return
    b = group_of(shift)
    while b < num_bags:
        start, end = np.int64(offsets[b]), np.int64(offsets[b + 1])
        divisor = _divisor(ids, start, end, weights, mode, padding, zero[0])
        c = member_of(shift) * len(zero)
        while c < dim:
            total = zero
            if divisor != 0:
                total = _add_rows(total, weight, stride, gathered, ids, start, end, weights, padding, c)
                if divisor != 1:
                    total = divide(total, divisor)
            save_once(out, b * dim + c, total)
            c += len(zero) << shift
        b += groups(shift)


@inline
def _better(best, winner, value, p, empty):
    """Return the larger value and its occurrence; the first of equal values, and NaN before every number."""
    wins = empty or (best == best and (value > best or value != value))
    return (value if wins else best), (p if wins else winner)


_better_lanes = lanewise(_better, 3)


def pool_max(weight, stride, gathered, ids, offsets, num_bags, padding, dim, out, winners, zero, nobody, shift, status):
    """Write the maximum of each bag's rows, and the occurrence that holds it (-1 in an empty bag).

    `nobody` are lanes of int32 -1.
    """
    if status[0] != NONE:
        return
    b = group_of(shift)
    while b < num_bags:
        c = member_of(shift) * len(zero)
        while c < dim:
            best, winner, empty = zero, nobody, True
            for p in range(np.int64(offsets[b]), np.int64(offsets[b + 1])):
                if ids[p] != padding:
                    r = np.int64(ids[p]) if gathered is None else np.int64(p)
                    value = load(weight, r * stride + c, zero)
                    both = _better_lanes(best, winner, value, np.int32(p), empty)
                    best, winner, empty = first(both), second(both), False
            save(out, b * dim + c, best)
            save(winners, b * dim + c, winner)
            c += len(zero) << shift
        b += groups(shift)


def fill(out, n, number):
    """``out = number``."""
    i = first_item()
    while i < n:
        out[i] = number
        i += items_apart()


def shift_offsets(offsets, n, base, out, status):
    """``out = offsets + base``."""
    if status[0] != NONE:
        return
    b = first_item()
    while b < n:
        out[b] = np.int64(offsets[b]) + base
        b += items_apart()


def expand_bags(ids, offsets, num_bags, weights, mode, padding, bags, coefs, zero, shift, status):
    """Write the bag of each occurrence and, unless `coefs` is None, the factor of the row in the bag (0: padding)."""
    if status[0] != NONE:
        return
    b = group_of(shift)
    while b < num_bags:
        start, end = np.int64(offsets[b]), np.int64(offsets[b + 1])
        share = zero
        if coefs is not None:
            divisor = _divisor(ids, start, end, weights, mode, padding, zero)
            share = cast(1, zero) / divisor if divisor != 0 else zero
        p = start + member_of(shift)
        while p < end:
            bags[p] = b
            if coefs is not None:
                factor = share if weights is None else weights[p] * share
                coefs[p] = factor if ids[p] != padding and (weights is None or weights[p] != 0) else zero
            p += 1 << shift
        b += groups(shift)


def share_bags(ids, offsets, num_bags, mode, padding, shares, zero, status):
    """Set the factor of each row in a bag's output: one over the divisor, 0 where there is nothing to pool."""
    if status[0] != NONE:
        return
    b = first_item()
    while b < num_bags:
        divisor = _divisor(ids, np.int64(offsets[b]), np.int64(offsets[b + 1]), None, mode, padding, zero)
        shares[b] = cast(1, zero) / divisor if divisor != 0 else zero
        b += items_apart()


def weights_gradient(
    weight, stride, ids, offsets, num_bags, weights, mode, padding, grad, dim, out, zero, shift, status
):
    """Write the gradient of the per-sample weights; formulas as in the CPU's `weights_gradient`."""
    if status[0] != NONE:
        return
    member, b = member_of(shift), group_of(shift)
    while b < num_bags:
        start, end = np.int64(offsets[b]), np.int64(offsets[b + 1])
        divisor = _divisor(ids, start, end, weights, mode, padding, zero[0])
        pooled = zero[0]
        for p in range(start, end):
            product = zero[0]
            if ids[p] != padding and divisor != 0:
                product = dot_at(weight, np.int64(ids[p]) * stride, grad, b * dim, dim, zero, shift)
                pooled += product if weights is None else weights[p] * product
            if member == 0:
                out[p] = product
        sync_warp(mask_of(shift))
        p = start + member
        while p < end and mode != SUM and divisor != 0:
            if ids[p] != padding:
                factor = cast(1, zero[0]) if weights is None else weights[p]
                share = pooled / divisor if mode == MEAN else factor * pooled / (divisor * divisor)
                out[p] = (out[p] - share) / divisor
            p += 1 << shift
        b += groups(shift)
