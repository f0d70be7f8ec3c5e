"""Single rows, for loops that users compile: `sparsembed.jit` compiles these functions into them.

`weight` (num_rows, dim) may have any strides; `x`, `out` and `grad` (dim,) are contiguous.
"""

import numpy as np

from ..._jit import inline
from ...rules._dispatch import has_pair, has_row_stage, reduce, reduce_pair, row, row_pair, step
from ._elements import load, load_row_slots, load_slots, save, save_row_slots, save_slots
from ._intrinsics import LANES, prefetch, row_address
from ._vectors import add, copy_row, half, load_vector, multiply, narrow, save_vector, wide, width
from .dot import dot_at

_LINE = 64  # bytes


def prefetch_row(weight, row):
    """Prefetch the cache lines of a row; a row that does not start on a line has one more."""
    start = row_address(weight, np.intp(row))
    prefetch(start, ((start & (_LINE - 1)) + weight.shape[1] * weight.itemsize + _LINE - 1) // _LINE)


def dot_row(weight, row, x):
    """Return the dot product of a row and x; columns that lie apart are added in order."""
    if weight.strides[1] == weight.itemsize:
        return dot_at(weight, row_address(weight, np.intp(row)), x[None], row_address(x, 0))
    total = x.dtype.type(0)
    for c in range(x.shape[0]):
        total += load(weight, np.uintp(row), c) * x[c]
    return total


@inline
def _sum_columns(lanes, rest, c, weight, start, a, x):
    """Return ``row + a * x`` in the columns from c on, as many as `lanes` is wide or only `rest`."""
    part = multiply(load_vector(x, row_address(x, c), lanes, rest), a)
    return add(load_vector(weight, start + c * weight.itemsize, lanes, rest), part)


def add_row(weight, row, a, x):
    """``weight[row] += a * x``.

    The last columns are a vector that overlaps the one before, and is made before that is written: a masked write
    takes as long as the rest of the row (100 float32: 32 ns instead of 19), and so does reading it soon after.
    """
    factor, dim, c, least = x.dtype.type(a), x.shape[0], 0, width(narrow(x))
    start, size = row_address(weight, np.intp(row)), weight.itemsize
    if weight.strides[1] != size:
        for each in range(dim):
            save(weight, np.uintp(row), each, load(weight, np.uintp(row), each) + factor * x[each])
        return
    if dim < least:
        save_vector(start, _sum_columns(narrow(x), dim, 0, weight, start, factor, x), dim)
        return
    last = narrow(x)
    if dim % least > 0:
        last = _sum_columns(last, None, dim - least, weight, start, factor, x)
    while c + width(wide(x)) <= dim:
        save_vector(start + c * size, _sum_columns(wide(x), None, c, weight, start, factor, x), None)
        c += width(wide(x))
    if c + width(half(x)) <= dim:
        save_vector(start + c * size, _sum_columns(half(x), None, c, weight, start, factor, x), None)
        c += width(half(x))
    if c + least <= dim:
        save_vector(start + c * size, _sum_columns(narrow(x), None, c, weight, start, factor, x), None)
        c += least
    if c < dim:
        save_vector(start + (dim - least) * size, last, None)


def read_row(weight, row, out):
    """``out[:] = weight[row]``, in the type of the arithmetic."""
    if weight.itemsize == out.itemsize and weight.strides[1] == weight.itemsize:
        copy_row(row_address(out, 0), row_address(weight, np.intp(row)), out.shape[0] * out.itemsize)
    else:
        for c in range(out.shape[0]):
            out[c] = load(weight, np.uintp(row), c)


@inline
def _terms(weight, state, r, grad, first, hp):
    """Sum what the rule reduces over the columns that are a multiple of 16 after `first`: a lane of `lane_sum`."""
    kind = grad.dtype.type
    x = y = kind(0)
    for c in range(first, grad.shape[0], LANES):
        if has_pair(hp):
            one, other = reduce_pair(load(weight, r, c), grad[c], load_slots(state, r, c, hp), hp)
            x, y = x + kind(one), y + kind(other)
        else:
            x += kind(reduce(load(weight, r, c), grad[c], hp))
    return x, y


@inline
def _sums(weight, state, r, grad, hp):
    """Return the sums over the row, added in the order of `lane_sum`, which needs scratch space: the same bits."""
    zero = grad.dtype.type(0)
    x, y = zero, zero
    for one in range(2):
        x2, y2 = zero, zero
        for two in range(one, 4, 2):
            x4, y4 = zero, zero
            for four in range(two, 8, 4):
                low = _terms(weight, state, r, grad, four, hp)
                high = _terms(weight, state, r, grad, four + 8, hp)
                x4, y4 = x4 + (low[0] + high[0]), y4 + (low[1] + high[1])
            x2, y2 = x2 + x4, y2 + y4
        x, y = x + x2, y + y2
    return x, y


@inline
def _step_row(weight, state, row_state, r, grad, hp):
    """Run the rule on row r, as `update_row` does for rules whose rows miss no steps."""
    r, stage, dim = np.uintp(r), grad.dtype.type(0), grad.dtype.type(grad.shape[0])
    if has_pair(hp):
        x, y = _sums(weight, state, r, grad, hp)
        stage, new_row = row_pair(x / dim, y / dim, load_row_slots(row_state, r, hp), hp)
        save_row_slots(row_state, r, new_row, hp)
    elif has_row_stage(hp):
        x, y = _sums(weight, state, r, grad, hp)
        stage, new_row = row(x / dim, load_row_slots(row_state, r, hp), hp)
        save_row_slots(row_state, r, new_row, hp)
    for c in range(grad.shape[0]):
        new, slots = step(load(weight, r, c), grad[c], load_slots(state, r, c, hp), stage, hp)
        save(weight, r, c, new)
        save_slots(state, r, c, slots, hp)


def step_row(weight, state, row, grad, hyper):
    """Run a rule without row slots on a row."""
    _step_row(weight, state, weight[:, :0], row, grad, hyper)


def step_row_and_slots(weight, state, row, grad, hyper):
    """Run a rule with row slots on a row; `state` is the pair of both states."""
    _step_row(weight, state[0], state[1], row, grad, hyper)
