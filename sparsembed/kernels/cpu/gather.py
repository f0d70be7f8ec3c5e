"""Copy the rows of a batch of ids into one array."""

from ..._jit import kernel
from ._elements import load
from ._intrinsics import copy, row_address, stream
from ._rows import copy_rows, distance
from ._sharing import WRONG, claim, enter, join, leave, within
from .catch_up import AHEAD_CATCHING_UP, CatchingUp, Missed, catch_up_row, prefetch_row

ELEMENTS, ROWS, STREAM = 0, 1, 2  # copy a row number by number, as bytes, or as bytes with non-temporal stores


@kernel
def gather_rows(claims, num_blocks, block_size, weight, ids, how, lines, catching_up, out):
    """``out[i] = weight[ids[i]]``; weight (num_rows, dim), ids (n,), out (n, dim).

    If `weight` has another dtype than `out`, rows are copied number by number.  `lines` are the cache lines of a row
    to prefetch; 0 for a table that lies in the cache, where prefetches only cost (16 columns: 30 %).
    """
    enter(claims)
    n, num_bytes = ids.shape[0], out.shape[1] * out.itemsize
    member = join(claims)
    block = claim(claims)
    while block < num_blocks:
        first, last = block * block_size, min((block + 1) * block_size, n)
        if catching_up is not None:
            for i in range(first, last):
                if i + AHEAD_CATCHING_UP < n:
                    prefetch_row(weight, ids[i + AHEAD_CATCHING_UP], lines, catching_up)
                table = CatchingUp(*catching_up)
                r = within(ids[i], weight.shape[0], claims)
                catch_up_row(weight, table.state, r, member, table.missed, False, table.hp)
                current = row_address(Missed(*table.missed).rows, member)
                if how == STREAM:
                    stream(row_address(out, i), current, num_bytes)
                else:
                    copy(row_address(out, i), current, num_bytes)
        elif how == ELEMENTS:
            for i in range(first, last):
                if i + distance(lines) < n:
                    prefetch_row(weight, ids[i + distance(lines)], lines, None)
                r = within(ids[i], weight.shape[0], claims)
                for c in range(out.shape[1]):
                    out[i, c] = load(weight, r, c)
        elif not copy_rows(first, last, weight, ids, lines, how == STREAM, out):
            claims[WRONG] = 1
        block = claim(claims)
    leave(claims)
