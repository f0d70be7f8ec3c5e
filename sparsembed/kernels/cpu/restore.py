"""Write saved weights and state into a table, all or nothing."""

import numpy as np

from ..._jit import inline, kernel
from ._elements import clear_row
from ._intrinsics import copy
from ._sharing import claim, enter, leave
from .catch_up import STEP, restart


@inline
def _copy_row(job, r):
    """Copy row r from one matrix to another, number by number if a row of either is not contiguous."""
    to, since = job[0] + r * job[1], job[3] + r * job[4]
    columns, size = job[6], job[7]
    if job[2] == size and job[5] == size:
        copy(to, since, columns * size)
    else:
        for c in range(columns):
            copy(to + c * job[2], since + c * job[5], size)


@kernel
def restore_rows(claims, num_blocks, block_size, jobs, weight, padding, last, steps, step):
    """Copy matrices of num_rows rows, and set the step of the table, which every row has then taken.

    `jobs` (matrices, 8): address, row stride and column stride in bytes of the target; the same of the source; number
    of columns; bytes of a number.  Row `padding` of weight (num_rows, dim) becomes zero, unless it is -1;
    last (num_rows or 0,) and steps (3,) as in `catch_up`.
    """
    enter(claims)
    block = claim(claims)
    while block < num_blocks:
        first, end = block * block_size, min((block + 1) * block_size, weight.shape[0])
        for j in range(jobs.shape[0]):
            for r in range(first, end):
                _copy_row(jobs[j], np.int64(r))
        if first <= padding < end:
            clear_row(weight, padding)
        for r in range(first, min(end, last.shape[0])):
            last[r] = step
        block = claim(claims)
    if leave(claims):  # in this kernel, so that an interrupt cannot separate rows and step
        steps[STEP] = step
        restart(steps, step)
