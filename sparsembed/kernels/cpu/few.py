"""Small batches: one compiled call checks ids, and copies or adds their rows.

`out` is new, and is given up if an id is out of range, so each id is checked where its row is read.  There are no
threads, and so nothing that threads share: with 32 ids a call takes 1 us.  Weights are contiguous float32
or float64.  Numba compiles a kernel for each dtype of the weight and of the ids, four versions at most, in 0.4 s each
(gather) and 1.2 s (pool).
"""

import numpy as np

from ..._jit import kernel
from ._bags import pool_bag
from ._rows import copy_rows, distance, lines_of


@kernel
def gather_few(weight, ids, out):
    """``out[i] = weight[ids[i]]``; return False at the first id out of range."""
    return copy_rows(0, ids.shape[0], weight, ids, lines_of(weight), False, out)


@kernel
def pool_few(weight, ids, offsets, mode, padding, out):
    """Write the sum, mean or sqrtn of each bag's rows to `out`; return False if an id is out of range."""
    ahead, fit = np.uintp(distance(lines_of(weight))), True
    for b in range(out.shape[0]):
        fit &= pool_bag(b, weight, ids, offsets, None, mode, padding, ahead, out)
    return fit


@kernel
def copy_offsets(given, n, offsets):
    """Copy the offsets of bags of n ids; return whether they start at 0, do not decrease, and end at n."""
    last, rising = np.int64(0), given[0] == 0
    for b in range(given.shape[0]):
        end = np.int64(given[b])
        rising &= end >= last
        offsets[b] = last = end
    return rising and last == n
