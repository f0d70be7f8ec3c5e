"""Scores: the dot product of each row of a bag with one vector of the bag.

Names are as in `pool`; `x` (num_bags, dim) has contiguous rows in the dtype of the arithmetic.
"""

import numpy as np

from ..._jit import inline, kernel
from ._elements import load
from ._intrinsics import last_at_most, prefetch, row_address
from ._rows import distance, lines_of
from ._sharing import claim, enter, join, leave, within
from ._vectors import add, fold, half, lanes_sum, load_vector, narrow, product, wide, width
from .catch_up import AHEAD_CATCHING_UP, prefetch_row
from .pool import current_row


@inline
def _products(total, rest, c, weight, start, x, to):
    """Add the products of the columns from c on, as many as `total` is wide or only `rest`, to `total`."""
    row = load_vector(weight, start + c * weight.itemsize, total, rest)
    return add(total, product(row, load_vector(x, to + c * x.itemsize, total, rest)))


@inline
def dot_at(weight, start, x, to):
    """Return the dot product of a row at address `start`, stored as in `weight`, and a row of x at address `to`.

    Sums of 64 columns apart (float32), folded to 16, which the other columns join; then a tree: an order that depends
    on the number of columns alone.
    """
    dim, c, few = x.shape[1], 0, narrow(x)
    if dim >= width(wide(x)):
        total = wide(x)
        while c + width(total) <= dim:
            total = _products(total, None, c, weight, start, x, to)
            c += width(total)
        few = fold(fold(total, half(x)), few)
    while c + width(few) <= dim:
        few = _products(few, None, c, weight, start, x, to)
        c += width(few)
    if c < dim:
        few = _products(few, dim - c, c, weight, start, x, to)
    return lanes_sum(few)


@inline
def dot_row(weight, r, x, to, scratch, member, catching_up):
    """Return the dot product of row r, after its missed steps, and a row of x at address `to`."""
    if scratch is None:
        array, row = current_row(weight, r, member, catching_up)
        return dot_at(array, row_address(array, row), x, to)
    for c in range(weight.shape[1]):
        scratch[member, c] = load(weight, r, c)
    return dot_at(scratch, row_address(scratch, member), x, to)


@kernel
def dot_few(weight, ids, offsets, x, padding, out):
    """Scores of few ids on one thread, of a contiguous weight; return False if an id is out of range."""
    ahead, lines, num_rows = distance(lines_of(weight)), lines_of(weight), np.uintp(weight.shape[0])
    start, stride, n = row_address(weight, 0), weight.strides[0], ids.shape[0]
    for b in range(x.shape[0]):
        to = row_address(x, b)
        for p in range(offsets[b], offsets[b + 1]):
            if p + ahead < n:
                prefetch(start + np.intp(ids[p + ahead]) * stride, lines)
            r = np.uintp(ids[p])
            if r >= num_rows:
                return False
            out[p] = 0 if ids[p] == padding else dot_at(weight, start + np.intp(r) * stride, x, to)
    return True


@kernel
def dot_rows(claims, num_blocks, block_size, weight, ids, offsets, x, padding, lines, scratch, catching_up, out):
    """``out[p] = weight[ids[p]] @ x[bag of p]``; 0 for padding.  Blocks are occurrences, not bags: bags may be long.

    `scratch` (threads, dim) is for rows that are not contiguous; None for others.
    """
    enter(claims)
    member, n = join(claims), ids.shape[0]
    ahead = distance(lines) if catching_up is None else AHEAD_CATCHING_UP
    block = claim(claims)
    while block < num_blocks:
        p, end = block * block_size, min((block + 1) * block_size, n)
        b = last_at_most(offsets, p)  # the last of those that begin there: bags before it are empty
        while p < end:
            stop = min(np.int64(offsets[b + 1]), end)
            to = row_address(x, b)
            for q in range(p, stop):
                if q + ahead < n:
                    prefetch_row(weight, ids[q + ahead], lines, catching_up)
                r = within(ids[q], weight.shape[0], claims)
                out[q] = 0 if ids[q] == padding else dot_row(weight, r, x, to, scratch, member, catching_up)
            p, b = stop, b + 1
        block = claim(claims)
    leave(claims)
