"""Pool the rows of bags, and compute gradients with respect to occurrences and per-sample weights.

Shared names: `ids` (n,), `offsets` (num_bags + 1,), `weights` (n,) per-sample weights or None,
`padding` the id to leave out or -1, `mode` one of SUM, MEAN, SQRTN, `catching_up` a `CatchingUp`, `lines` the
cache lines of a row to prefetch (0 for a table that lies in the cache).
"""

import numpy as np

from ..._jit import inline, kernel
from ._bags import MEAN, SUM, divisor_of, pool_bag
from ._elements import load
from ._intrinsics import clear
from ._rows import distance
from ._sharing import WRONG, claim, enter, join, leave, within
from .catch_up import AHEAD, AHEAD_CATCHING_UP, CatchingUp, Missed, catch_up_row, prefetch_row
from .segment import dot


@inline
def _factor(weights, p, like):
    return like.dtype.type(1) if weights is None else weights[p]


@inline
def current_row(weight, r, member, catching_up):
    """Return (array, index) of row r: the weight, or scratch space with the row after its missed steps."""
    if catching_up is None:
        return weight, r
    table = CatchingUp(*catching_up)
    catch_up_row(weight, table.state, r, member, table.missed, False, table.hp)
    return Missed(*table.missed).rows, np.uintp(member)


@inline
def add_rows(total, weight, bag, weights, lines, member, catching_up, claims):
    """Add the rows of one bag in order, in memory: for rows that catch up, or that are not contiguous."""
    ids, first, last, padding = bag
    reach = distance(lines) if catching_up is None else AHEAD_CATCHING_UP
    for p in range(first, last):
        if p + reach < ids.shape[0]:
            prefetch_row(weight, ids[p + reach], lines, catching_up)
        r = within(ids[p], weight.shape[0], claims)  # before the padding: -1, which stands for none, is out of range
        if ids[p] != padding:
            array, row = current_row(weight, r, member, catching_up)
            factor = _factor(weights, p, total)
            for c in range(total.shape[0]):
                total[c] += factor * load(array, row, c)


@kernel
def pool_rows(
    claims, num_blocks, block_size, weight, ids, offsets, weights, mode, padding, lines, scratch, catching_up, out
):
    """Write the sum, mean or sqrtn of each bag's rows to `out` (num_bags, dim).

    `scratch` (threads, dim) is for rows that catch up, or that are not contiguous; None for all others, which are
    summed in registers.  Both in one compiled version leave LLVM too few registers: 2.1 ns a row instead of 1.5.
    """
    enter(claims)
    member, dim, ahead = join(claims), out.shape[1], np.uintp(distance(lines))  # a division: once a call
    block = claim(claims)
    while block < num_blocks:
        for b in range(block * block_size, min((block + 1) * block_size, out.shape[0])):
            if scratch is None:
                if not pool_bag(b, weight, ids, offsets, weights, mode, padding, ahead, out):
                    claims[WRONG] = 1
                continue
            first, last, total = np.int64(offsets[b]), np.int64(offsets[b + 1]), scratch[member]
            divisor = total.dtype.type(divisor_of(ids, first, last, weights, mode, padding))
            clear(total)
            if divisor != 0:
                bag = (ids, first, last, padding)
                add_rows(total, weight, bag, weights, lines, member, catching_up, claims)
            for c in range(dim):
                out[b, c] = total[c] / divisor if divisor != 0 else 0
        block = claim(claims)
    leave(claims)


@kernel
def pool_max(claims, num_blocks, block_size, weight, ids, offsets, padding, catching_up, out, winners):
    """Write the maximum of each bag's rows, and the winning occurrences (-1 in an empty bag).

    Ties go to the first occurrence; a NaN wins over every number.
    """
    enter(claims)
    member = join(claims)
    block = claim(claims)
    while block < num_blocks:
        for b in range(block * block_size, min((block + 1) * block_size, out.shape[0])):
            out[b, :] = 0
            winners[b, :] = -1
            empty = True
            for p in range(np.int64(offsets[b]), np.int64(offsets[b + 1])):
                r = within(ids[p], weight.shape[0], claims)
                if ids[p] == padding:
                    continue
                array, r = current_row(weight, r, member, catching_up)
                for c in range(out.shape[1]):
                    value, best = load(array, r, c), out[b, c]
                    if empty or (best == best and (value > best or value != value)):
                        out[b, c], winners[b, c] = value, p
                empty = False
        block = claim(claims)
    leave(claims)


@kernel
def expand_bags(ids, offsets, weights, mode, padding, bags, coefs):
    """Set the bag of each occurrence, and, unless `coefs` is None, the factor of its row in the bag (0 for padding)."""
    for b in range(offsets.shape[0] - 1):
        first, last = np.int64(offsets[b]), np.int64(offsets[b + 1])
        for p in range(first, last):
            bags[p] = b
        if coefs is not None:
            divisor = divisor_of(ids, first, last, weights, mode, padding)
            share = 1.0 / divisor if divisor != 0 else 0.0
            for p in range(first, last):
                factor = share if weights is None else np.float64(weights[p]) * share
                coefs[p] = factor if ids[p] != padding else 0.0


@kernel
def share_bags(ids, offsets, mode, padding, shares):
    """Set the factor of the rows of each bag: 1 / divisor, or 0 if the bag has nothing to pool."""
    for b in range(offsets.shape[0] - 1):
        divisor = divisor_of(ids, np.int64(offsets[b]), np.int64(offsets[b + 1]), None, mode, padding)
        shares[b] = 1.0 / divisor if divisor != 0 else 0.0


@kernel
def weights_gradient(
    claims, num_blocks, block_size, weight, ids, offsets, weights, mode, padding, grad, lines, scratch, out
):
    """Gradient of the per-sample weights: ``out[p] = d<grad[b], pooled[b]> / d weights[p]``.

    With x_p the row, S the divisor and dot_p = <grad, x_p>: sum dot_p; mean
    (dot_p - sum_q w_q dot_q / S) / S; sqrtn (dot_p - w_p sum_q w_q dot_q / S^2) / S.
    """
    enter(claims)
    terms = scratch[join(claims)]
    block = claim(claims)
    while block < num_blocks:
        for b in range(block * block_size, min((block + 1) * block_size, offsets.shape[0] - 1)):
            first, last = np.int64(offsets[b]), np.int64(offsets[b + 1])
            divisor = divisor_of(ids, first, last, weights, mode, padding)
            pooled = 0.0
            for p in range(first, last):
                out[p] = 0
                if ids[p] == padding or divisor == 0:
                    continue
                if p + AHEAD < ids.shape[0]:
                    prefetch_row(weight, ids[p + AHEAD], lines, None)
                product = dot(grad, b, weight, within(ids[p], weight.shape[0], claims), terms)
                out[p] = product
                pooled += product if weights is None else np.float64(weights[p]) * product
            for p in range(first, last):
                if mode == SUM or ids[p] == padding or divisor == 0:
                    continue
                factor = 1.0 if weights is None else np.float64(weights[p])
                share = pooled / divisor if mode == MEAN else factor * pooled / (divisor * divisor)
                out[p] = (np.float64(out[p]) - share) / divisor
        block = claim(claims)
    leave(claims)
