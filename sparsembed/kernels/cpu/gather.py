"""Copy the rows of a batch of ids into one array."""

from ..._jit import kernel
from ._intrinsics import copy, element, prefetch, row_address, stream
from ._sharing import claim, enter, finish, join, leave, within
from .catch_up import AHEAD, AHEAD_DEFERRED, catch_up_row, prefetch_row

ELEMENTS, ROWS, STREAM = 0, 1, 2  # how a row is copied


@kernel
def gather_rows(claims, num_blocks, block_size, weight, ids, how, lines, deferred, out):
    """``out[i] = weight[ids[i]]``; weight (num_rows, dim), ids (n,), out (n, dim) of equal dtype."""
    if not enter(claims):
        return
    n, num_bytes = ids.shape[0], out.shape[1] * out.itemsize
    member = join(claims)
    ahead = AHEAD if deferred is None else AHEAD_DEFERRED
    block = claim(claims)
    while block < num_blocks:
        for i in range(block * block_size, min((block + 1) * block_size, n)):
            if i + ahead < n:
                prefetch_row(weight, ids[i + ahead], lines, deferred)
            r = within(ids[i], weight.shape[0], claims)
            if deferred is not None:
                state, hp, lag = deferred
                catch_up_row(weight, state, r, member, lag, False, hp)
                if how == STREAM:
                    stream(row_address(out, i), row_address(lag[7], member), num_bytes)
                else:
                    copy(row_address(out, i), row_address(lag[7], member), num_bytes)
            elif how == STREAM:
                stream(row_address(out, i), row_address(weight, r), num_bytes)
            elif how == ROWS:
                copy(row_address(out, i), row_address(weight, r), num_bytes)
            else:
                for c in range(out.shape[1]):
                    out[i, c] = weight[r, c]
        finish(claims)
        block = claim(claims)
    leave(claims, num_blocks)


@kernel
def gather_half(claims, num_blocks, block_size, weight, ids, lines, out):
    """``out[i] = weight[ids[i]]`` for float16 rows given as uint16; out (n, dim) float32."""
    if not enter(claims):
        return
    n = ids.shape[0]
    block = claim(claims)
    while block < num_blocks:
        for i in range(block * block_size, min((block + 1) * block_size, n)):
            if i + AHEAD < n:
                prefetch(row_address(weight, ids[i + AHEAD]), lines)
            r = within(ids[i], weight.shape[0], claims)
            for c in range(out.shape[1]):
                out[i, c] = element(weight, r, c)
        finish(claims)
        block = claim(claims)
    leave(claims, num_blocks)
