"""Dot products of rows, in registers."""

from ..._jit import inline
from ._vectors import HALF, NARROW, WIDE, add, fold, half, lanes_sum, load_vector, narrow, product, wide


@inline
def _products(total, rest, c, weight, start, x, to):
    """Add the products of the columns from c on, as many as `total` is wide or only `rest`, to `total`."""
    row = load_vector(weight, start + c * weight.itemsize, total, rest)
    return add(total, product(row, load_vector(x, to + c * x.itemsize, total, rest)))


@inline
def dot_at(weight, start, x, to):
    """Return the dot product of a row at address `start`, stored as in `weight`, and a row of x at address `to`.

    Sums of 64, 32 and 16 columns apart (float32), which are folded in a fixed order: the same bits wherever rows lie.
    """
    dim, c, total = x.shape[1], 0, wide(x)
    while c + WIDE // x.itemsize <= dim:
        total = _products(total, None, c, weight, start, x, to)
        c += WIDE // x.itemsize
    some = fold(total, half(x))
    if c + HALF // x.itemsize <= dim:
        some = _products(some, None, c, weight, start, x, to)
        c += HALF // x.itemsize
    few = fold(some, narrow(x))
    if c + NARROW // x.itemsize <= dim:
        few = _products(few, None, c, weight, start, x, to)
        c += NARROW // x.itemsize
    if c < dim:
        few = _products(few, dim - c, c, weight, start, x, to)
    return lanes_sum(few)
