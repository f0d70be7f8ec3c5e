"""Copy the rows of a batch of ids into one array."""

from ..._jit import kernel
from ._elements import load
from ._intrinsics import copy, row_address, stream
from ._sharing import claim, enter, finish, join, leave, within
from .catch_up import AHEAD, AHEAD_CATCHING_UP, CatchingUp, Missed, catch_up_row, prefetch_row

ELEMENTS, ROWS, STREAM = 0, 1, 2  # copy a row number by number, as bytes, or as bytes with non-temporal stores


@kernel
def gather_rows(claims, num_blocks, block_size, weight, ids, how, lines, catching_up, out):
    """``out[i] = weight[ids[i]]``; weight (num_rows, dim), ids (n,), out (n, dim).

    If `weight` has another dtype than `out`, rows are copied number by number.
    """
    if not enter(claims):
        return
    n, num_bytes = ids.shape[0], out.shape[1] * out.itemsize
    member = join(claims)
    ahead = AHEAD if catching_up is None else AHEAD_CATCHING_UP
    block = claim(claims)
    while block < num_blocks:
        for i in range(block * block_size, min((block + 1) * block_size, n)):
            if i + ahead < n:
                prefetch_row(weight, ids[i + ahead], lines, catching_up)
            r = within(ids[i], weight.shape[0], claims)
            if catching_up is not None:
                table = CatchingUp(*catching_up)
                catch_up_row(weight, table.state, r, member, table.missed, False, table.hp)
                current = row_address(Missed(*table.missed).rows, member)
                if how == STREAM:
                    stream(row_address(out, i), current, num_bytes)
                else:
                    copy(row_address(out, i), current, num_bytes)
            elif how == STREAM:
                stream(row_address(out, i), row_address(weight, r), num_bytes)
            elif how == ROWS:
                copy(row_address(out, i), row_address(weight, r), num_bytes)
            else:
                for c in range(out.shape[1]):
                    out[i, c] = load(weight, r, c)
        finish(claims)
        block = claim(claims)
    leave(claims, num_blocks)
