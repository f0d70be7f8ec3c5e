"""Pool the rows of bags, and carry gradients from bags back to occurrences and weights.

Shared names: `ids` (n,), `offsets` (num_bags + 1,), `weights` (n,) per-sample weights or None,
`padding` the id to leave out or -1, `mode` one of SUM, MEAN, SQRTN, MAX, `deferred` as in `catch_up`.
"""

from math import sqrt

import numpy as np

from ..._jit import inline, kernel
from ._intrinsics import claim, clear, element, finish, join
from .catch_up import AHEAD, AHEAD_DEFERRED, catch_up_row, prefetch_row
from .segment import dot

SUM, MEAN, SQRTN, MAX = 0, 1, 2, 3


@inline
def _factor(weights, p, like):
    return like.dtype.type(1) if weights is None else weights[p]


@inline
def _divisor(ids, first, last, weights, mode, padding):
    """What the weighted sum of a bag is divided by; 0 means that there is nothing to pool."""
    total = 0.0
    if mode == SUM:
        return 1.0
    for p in range(first, last):
        if ids[p] != padding:
            factor = 1.0 if weights is None else np.float64(weights[p])
            total += factor * factor if mode == SQRTN else factor
    return sqrt(total) if mode == SQRTN else total


@inline
def _read(weight, r, member, deferred):
    """Return (array, row) where row r stands, brought up to date."""
    if deferred is None:
        return weight, r
    state, hp, lag = deferred
    catch_up_row(weight, state, r, member, lag, False, hp)
    return lag[7], np.uintp(member)


@inline
def _add_rows(total, weight, ids, first, last, weights, padding, lines, member, deferred):
    """Add the rows of one bag in order; four at a time save three passes over `total` in four."""
    p, reach = first, AHEAD if deferred is None else AHEAD_DEFERRED
    while p < last:
        count = 4 if padding < 0 and deferred is None and p + 4 <= last else 1
        if p + reach + count <= ids.shape[0]:
            for ahead in range(p + reach, p + reach + count):
                prefetch_row(weight, ids[ahead], lines, deferred)
        r0, f0 = np.uintp(ids[p]), _factor(weights, p, total)
        if count == 4:
            r1, f1 = np.uintp(ids[p + 1]), _factor(weights, p + 1, total)
            r2, f2 = np.uintp(ids[p + 2]), _factor(weights, p + 2, total)
            r3, f3 = np.uintp(ids[p + 3]), _factor(weights, p + 3, total)
            for c in range(total.shape[0]):
                two = total[c] + f0 * element(weight, r0, c) + f1 * element(weight, r1, c)
                total[c] = two + f2 * element(weight, r2, c) + f3 * element(weight, r3, c)
        elif ids[p] != padding:
            array, row = _read(weight, r0, member, deferred)
            for c in range(total.shape[0]):
                total[c] += f0 * element(array, row, c)
        p += count


@kernel
def pool_rows(
    claims, num_blocks, block_size, weight, ids, offsets, weights, mode, padding, lines, scratch, deferred, out
):
    """Write the sum, mean or sqrtn of each bag's rows to `out` (num_bags, dim)."""
    member = join(claims)
    total = scratch[member]
    block = claim(claims)
    while block < num_blocks:
        for b in range(block * block_size, min((block + 1) * block_size, out.shape[0])):
            first, last = np.int64(offsets[b]), np.int64(offsets[b + 1])
            clear(total)
            _add_rows(total, weight, ids, first, last, weights, padding, lines, member, deferred)
            divisor = total.dtype.type(_divisor(ids, first, last, weights, mode, padding))
            for c in range(out.shape[1]):
                out[b, c] = total[c] / divisor if divisor != 0 else 0
        finish(claims)
        block = claim(claims)


@kernel
def pool_max(claims, num_blocks, block_size, weight, ids, offsets, padding, deferred, out, winners):
    """Write the maximum of each bag's rows, and which occurrence won (-1 in an empty bag).

    Ties go to the first occurrence; a NaN wins over every number.
    """
    member = join(claims)
    block = claim(claims)
    while block < num_blocks:
        for b in range(block * block_size, min((block + 1) * block_size, out.shape[0])):
            out[b, :] = 0
            winners[b, :] = -1
            empty = True
            for p in range(np.int64(offsets[b]), np.int64(offsets[b + 1])):
                if ids[p] == padding:
                    continue
                array, r = _read(weight, np.uintp(ids[p]), member, deferred)
                for c in range(out.shape[1]):
                    value, best = element(array, r, c), out[b, c]
                    if empty or (best == best and (value > best or value != value)):
                        out[b, c], winners[b, c] = value, p
                empty = False
        finish(claims)
        block = claim(claims)


@kernel
def expand_bags(ids, offsets, weights, mode, padding, bags, coefs):
    """Set each occurrence's bag, and the factor of its row in that bag's output (0 for padding)."""
    for b in range(offsets.shape[0] - 1):
        first, last = np.int64(offsets[b]), np.int64(offsets[b + 1])
        divisor = _divisor(ids, first, last, weights, mode, padding)
        share = 1.0 / divisor if divisor != 0 else 0.0
        for p in range(first, last):
            factor = share if weights is None else np.float64(weights[p]) * share
            bags[p] = b
            coefs[p] = factor if ids[p] != padding else 0.0


@kernel
def weights_gradient(
    claims, num_blocks, block_size, weight, ids, offsets, weights, mode, padding, grad, lines, scratch, out
):
    """Gradient of the per-sample weights: ``out[p] = d<grad[b], pooled[b]> / d weights[p]``.

    With x_p the row, S the divisor and dot_p = <grad, x_p>: sum dot_p; mean
    (dot_p - sum_q w_q dot_q / S) / S; sqrtn (dot_p - w_p sum_q w_q dot_q / S^2) / S.
    """
    terms = scratch[join(claims)]
    block = claim(claims)
    while block < num_blocks:
        for b in range(block * block_size, min((block + 1) * block_size, offsets.shape[0] - 1)):
            first, last = np.int64(offsets[b]), np.int64(offsets[b + 1])
            divisor = _divisor(ids, first, last, weights, mode, padding)
            pooled = 0.0
            for p in range(first, last):
                out[p] = 0
                if ids[p] == padding or divisor == 0:
                    continue
                if p + AHEAD < ids.shape[0]:
                    prefetch_row(weight, ids[p + AHEAD], lines, None)
                product = dot(grad, b, weight, np.uintp(ids[p]), terms)
                out[p] = product
                pooled += product if weights is None else np.float64(weights[p]) * product
            for p in range(first, last):
                if mode == SUM or ids[p] == padding or divisor == 0:
                    continue
                factor = 1.0 if weights is None else np.float64(weights[p])
                share = pooled / divisor if mode == MEAN else factor * pooled / (divisor * divisor)
                out[p] = (np.float64(out[p]) - share) / divisor
        finish(claims)
        block = claim(claims)
