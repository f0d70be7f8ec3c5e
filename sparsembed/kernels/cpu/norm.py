"""Norms of rows in float64, and rows scaled down to a largest norm.

`limit` = (largest norm, p, what is added to a norm that divides, share, terms): `terms` (threads, padded) is
room for a row of float64, zeros behind dim; `share`, a little below one, makes up for rounding, so that a row
that was scaled once is not scaled again.
"""

from math import inf, sqrt

import numpy as np

from ..._jit import inline, kernel
from ._intrinsics import element, lane_sum
from ._sharing import claim, enter, finish, join, leave
from .segment import dot

_SMALL = 2.0**-900  # sums of squares from here on have lost nothing to underflow


@inline
def _row_norm(array, r, p, terms):
    """The p-norm of row r; NaN where a number is not finite."""
    if p == 2:
        total = dot(array, r, array, r, terms)
        if _SMALL < total < inf:
            return sqrt(total)
    largest = 0.0
    for c in range(array.shape[1]):
        size = abs(np.float64(element(array, r, c)))
        if size > largest or size != size:
            largest = size
    if largest == 0 or largest - largest != 0:
        return largest - largest
    if p == inf:
        return largest
    for c in range(array.shape[1]):  # in units of the largest: no power over- or underflows
        size = abs(np.float64(element(array, r, c))) / largest
        terms[c] = size if p == 1 else size**p
    return largest * lane_sum(terms) ** (1 / p)


@inline
def clip_row(array, r, limit, member):
    """Scale row r down if its norm is too large."""
    most, p, extra, share, terms = limit
    norm = _row_norm(array, r, p, terms[member])
    if norm > most:
        scale = most / (norm + extra) * share
        for c in range(array.shape[1]):
            array[r, c] = scale * array[r, c]


@kernel
def clip_rows(claims, num_blocks, block_size, array, limit):
    """Scale down every row of an array whose norm is too large, in place."""
    if not enter(claims):
        return
    member = join(claims)
    block = claim(claims)
    while block < num_blocks:
        for r in range(block * block_size, min((block + 1) * block_size, array.shape[0])):
            clip_row(array, np.uintp(r), limit, member)
        finish(claims)
        block = claim(claims)
    leave(claims, num_blocks)
