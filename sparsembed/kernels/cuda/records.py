"""Read and clear the records of ids out of range, while other kernels may write to them.

A record is what `sort.first_outside` and `sort.bad_offsets` write, ``call * 2**31 + position``, or NONE.
"""

import numpy as np

from ._instructions import atomic_exchange, atomic_replace
from ._sharing import NONE, first_item, items_apart


def move_records(records, n, moved):
    """Move n records to `moved`, and clear them; no error that a kernel writes meanwhile is lost."""
    i = first_item()
    while i < n:
        moved[i] = atomic_exchange(records, i, np.uint64(NONE))
        i += items_apart()


def forget_call(record, call):
    """Clear the number of ids, and of offsets, if this call has noted it."""
    i = first_item()
    if i < 2:
        found = record[i]
        if found >> np.uint64(31) == np.uint64(call):
            atomic_replace(record, i, found, np.uint64(NONE))
