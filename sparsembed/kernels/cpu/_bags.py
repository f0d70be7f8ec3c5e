"""The sum of one bag, in registers: the part that all kernels of bags share.  Names are as in `pool`."""

from math import sqrt

import numpy as np

from ..._jit import inline
from ._intrinsics import row_address
from ._vectors import (
    HALF,
    NARROW,
    WIDE,
    add,
    divide,
    fetch_vector,
    half,
    load_vector,
    multiply,
    narrow,
    save_vector,
    wide,
)

SUM, MEAN, SQRTN = 0, 1, 2


@inline
def divisor_of(ids, first, last, weights, mode, padding):
    """Return the divisor of the weighted sum of a bag; 0 if the bag has nothing to pool."""
    if mode == SUM:
        return 1.0
    if weights is None:  # whole numbers: a sum of floats takes as long as adding a row in the cache
        count = last - first
        if padding >= 0:
            for p in range(first, last):
                count -= ids[p] == padding
        total = np.float64(count)
    else:
        total = 0.0
        for p in range(first, last):
            if ids[p] != padding:
                factor = np.float64(weights[p])
                total += factor * factor if mode == SQRTN else factor
    return sqrt(total) if mode == SQRTN else total


@inline
def _pool_columns(total, rest, c, weight, bag, weights, ahead, divisor, to):
    """Pool the columns from c on, as many as `total` is wide or only `rest`, in registers; return whether ids fit.

    At an id out of range the loop ends: setting a flag there instead, for each
    row, takes as long as adding the row (64 columns in the cache: 1.7 ns a row instead of 3).
    """
    ids, first, last, padding = bag
    start, stride = row_address(weight, 0) + c * weight.itemsize, weight.strides[0]
    num_rows, size, fit = np.uintp(weight.shape[0]), np.uintp(ids.shape[0]), True
    for p in range(np.uintp(first), np.uintp(last)):  # unsigned: an index that may be negative costs a test
        if p + ahead < size:
            fetch_vector(start + np.int64(ids[p + ahead]) * stride, total)
        r = np.uintp(ids[p])
        if r >= num_rows:
            fit = False
            break
        if ids[p] != padding:
            part = load_vector(weight, start + np.int64(r) * stride, total, rest)
            if weights is not None:
                part = multiply(part, weights[p])
            total = add(total, part)
    if divisor != 1:  # the division takes 10 ns, as long as adding three rows
        total = divide(total, divisor)
    save_vector(to, total, rest)
    return fit


@inline
def pool_bag(b, weight, ids, offsets, weights, mode, padding, ahead, out):
    """Write the sum, mean or sqrtn of the rows of bag b to ``out[b]``; return whether ids are in range."""
    first, last, dim = np.int64(offsets[b]), np.int64(offsets[b + 1]), out.shape[1]
    divisor = out.dtype.type(divisor_of(ids, first, last, weights, mode, padding))
    bag, to, fit, c = (ids, first, last, padding), row_address(out, b), True, 0
    if divisor == 0:
        for each in range(dim):
            out[b, each] = 0
        return True
    while c + WIDE // out.itemsize <= dim:
        fit &= _pool_columns(wide(out), None, c, weight, bag, weights, ahead, divisor, to + c * out.itemsize)
        c += WIDE // out.itemsize
    if c + HALF // out.itemsize <= dim:
        fit &= _pool_columns(half(out), None, c, weight, bag, weights, ahead, divisor, to + c * out.itemsize)
        c += HALF // out.itemsize
    if c + NARROW // out.itemsize <= dim:
        fit &= _pool_columns(narrow(out), None, c, weight, bag, weights, ahead, divisor, to + c * out.itemsize)
        c += NARROW // out.itemsize
    if c < dim:
        fit &= _pool_columns(narrow(out), dim - c, c, weight, bag, weights, ahead, divisor, to + c * out.itemsize)
    return fit
