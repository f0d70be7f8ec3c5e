"""Copy rows as bytes, and how far ahead to prefetch them: parts of the kernels that read rows."""

import numpy as np

from ..._jit import inline
from ._elements import load
from ._intrinsics import prefetch, row_address, stream
from ._vectors import copy_row

NEAR_BYTES = 1 << 22  # rows of smaller tables are not prefetched: they lie in the cache of the core, or near it
LEAST = 64  # rows of a table of which a batch may step all; so many (32 columns) step in 2 us
_NEVER = 1 << 40  # a prefetch distance longer than any batch


@inline
def distance(lines):
    """Return how many rows ahead to prefetch rows of so many cache lines; a batch is shorter if there are none."""
    return min(max(80 // lines, 8), 32) if lines > 0 else _NEVER


@inline
def lines_of(weight):
    """Return the cache lines of a row of a contiguous weight to prefetch: none of a table that lies in the cache."""
    if weight.size * weight.itemsize <= NEAR_BYTES:
        return 0
    return min((weight.shape[1] * weight.itemsize + 127) // 64, 16)


@inline
def _copy_rows(first, last, ahead, weight, ids, lines, streamed, out):
    num_rows, num_bytes = np.uintp(weight.shape[0]), out.shape[1] * out.itemsize
    start, stride, to = row_address(weight, 0), weight.strides[0], row_address(out, 0)
    for i in range(first, last):
        if ahead > 0:
            prefetch(start + np.intp(ids[i + ahead]) * stride, lines)
        r = np.uintp(ids[i])
        if r >= num_rows:
            return False
        if streamed:
            stream(to + i * num_bytes, start + np.intp(r) * stride, num_bytes)
        else:
            copy_row(to + i * num_bytes, start + np.intp(r) * stride, num_bytes)
    return True


@inline
def copy_rows(first, last, weight, ids, lines, streamed, out):
    """Copy the rows of ids ``first:last`` as bytes; return False at the first id out of range.

    Columns of one number are copied as numbers.  The rows at the end, which have nothing to prefetch, have a loop of
    their own: a test in each turn takes 1 ns.
    """
    if out.shape[1] == 1:
        fit, num_rows = weight.shape[0] > 0 or first == last, np.uintp(weight.shape[0])
        last = last if fit else first
        for i in range(first, last):
            r = np.uintp(ids[i])
            fit &= r < num_rows  # no early exit, so that it vectorises
            out[i, 0] = load(weight, r if r < num_rows else np.uintp(0), 0)
        return fit
    ahead = distance(lines)
    middle = max(first, min(last, ids.shape[0] - ahead))
    if not _copy_rows(first, middle, ahead, weight, ids, lines, streamed, out):
        return False
    return _copy_rows(middle, last, 0, weight, ids, lines, streamed, out)


def whole_step(count, num_rows):
    """Whether a batch of `count` rows steps the other rows, too, where rows catch up: as the dense optimizer does.

    A batch of 45 % of 9,066 rows takes as long either way (32 and 128 columns), a batch of all rows half as long.
    Sizes alone decide, so that the same calls give the same bits.
    """
    return 2 * count >= num_rows >= LEAST


is_whole = inline(whole_step)
