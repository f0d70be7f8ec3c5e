"""Copy the rows of a batch of ids into one array."""

import numpy as np

from ._instructions import load_once, save_once
from ._sharing import NONE, group_of, groups, member_of


def gather_rows(weight, stride, ids, n, dim, out, zero, shift, status):
    """``out[i] = weight[ids[i]]``, unless `status` says that an id is out of range.

    weight (num_rows, dim), whose rows begin `stride` numbers apart; ids (n,); out (n, dim).
    """
    if status[0] != NONE:
        return
    step, c, columns = groups(shift), member_of(shift) * len(zero), len(zero) << shift
    while c < dim:
        i = group_of(shift)
        while i + 3 * step < n:  # four rows in flight
            j, k, m = i + step, i + 2 * step, i + 3 * step
            r, s, t, u = np.int64(ids[i]), np.int64(ids[j]), np.int64(ids[k]), np.int64(ids[m])
            first = load_once(weight, r * stride + c, zero)
            second = load_once(weight, s * stride + c, zero)
            third = load_once(weight, t * stride + c, zero)
            fourth = load_once(weight, u * stride + c, zero)
            save_once(out, i * dim + c, first)
            save_once(out, j * dim + c, second)
            save_once(out, k * dim + c, third)
            save_once(out, m * dim + c, fourth)
            i += 4 * step
        while i < n:
            save_once(out, i * dim + c, load_once(weight, np.int64(ids[i]) * stride + c, zero))
            i += step
        c += columns
