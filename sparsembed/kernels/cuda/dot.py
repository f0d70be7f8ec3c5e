"""Scores: the dot product of each row of a bag with one vector of the bag; names are as in `pool`."""

import numpy as np

from ._instructions import cast, inline, lanes_sum, lanewise, load, load_once
from ._sharing import NONE, group_of, group_sum, groups, member_of


@inline
def _product(a, b, extra):
    return a * b


_products = lanewise(_product, 2)


@inline
def dot_at(weight, start, x, to, dim, zero, shift):
    """Return the dot product of a row and a vector, given where they start; the same in all lanes of the group."""
    total, c = zero[0], member_of(shift) * len(zero)
    while c < dim:
        a, b = load(x, to + c, zero), load_once(weight, start + c, zero)
        total += lanes_sum(_products(a, b, None))
        c += len(zero) << shift
    return group_sum(total, shift)


def dot_rows(weight, stride, gathered, ids, offsets, num_bags, x, padding, dim, out, zero, shift, status):
    """``out[p] = weight[ids[p]] @ x[bag of p]``; 0 for padding."""
    if status[0] != NONE:
        return
    member, b = member_of(shift), group_of(shift)
    while b < num_bags:
        for p in range(np.int64(offsets[b]), np.int64(offsets[b + 1])):
            r, score = np.int64(ids[p]) if gathered is None else np.int64(p), cast(0, zero[0])
            if ids[p] != padding:
                score = dot_at(weight, r * stride, x, b * dim, dim, zero, shift)
            if member == 0:
                out[p] = score
        b += groups(shift)
