"""Clip rows to a largest norm; norms are computed in float64."""

from math import inf, sqrt
from typing import Any, NamedTuple

import numpy as np

from ..._jit import inline, kernel
from ._elements import load, save
from ._intrinsics import lane_sum
from ._sharing import claim, enter, join, leave
from .segment import dot

_SMALL = 2.0**-900  # above this sum, squares that underflow are negligible


class Limit(NamedTuple):
    """The largest norm of a row.  Kernels get a plain tuple, or None without a limit."""

    most: Any  # the largest norm
    p: Any
    extra: Any  # added to the norm before the division
    share: Any  # a little below one, so that rounding never leaves a scaled row above the limit
    terms: Any  # scratch (threads, padded dim) of float64, zeros after dim


@inline
def _row_norm(array, r, p, terms):
    """Return the p-norm of row r; NaN if an element is not finite."""
    if p == 2:
        total = dot(array, r, array, r, terms)
        if _SMALL < total < inf:
            return sqrt(total)
    largest = 0.0
    for c in range(array.shape[1]):
        size = abs(np.float64(load(array, r, c)))
        if size > largest or size != size:
            largest = size
    if largest == 0 or largest - largest != 0:
        return largest - largest
    if p == inf:
        return largest
    for c in range(array.shape[1]):  # relative to the largest element, so that no power overflows
        size = abs(np.float64(load(array, r, c))) / largest
        terms[c] = size if p == 1 else size**p
    return largest * lane_sum(terms) ** (1 / p)


@inline
def clip_row(array, r, limit, member):
    """Scale row r down to the largest norm if its norm is larger."""
    limit = Limit(*limit)
    norm = _row_norm(array, r, limit.p, limit.terms[member])
    if norm > limit.most:
        scale = limit.most / (norm + limit.extra) * limit.share
        for c in range(array.shape[1]):
            save(array, r, c, scale * load(array, r, c))


@kernel
def clip_rows(claims, num_blocks, block_size, array, limit):
    """Scale every row with a larger norm down to the largest norm, in place."""
    enter(claims)
    member = join(claims)
    block = claim(claims)
    while block < num_blocks:
        for r in range(block * block_size, min((block + 1) * block_size, array.shape[0])):
            clip_row(array, np.uintp(r), limit, member)
        block = claim(claims)
    leave(claims)
