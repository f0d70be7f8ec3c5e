"""The Euclidean norm of several arrays together, and rows clipped to a largest norm."""

import math

import numpy as np

from .._typing import Array
from ..kernels.cpu import norm, segment
from . import threads
from .blocks import blocks_of, padded, scratch
from .views import read_only

_SMALLEST = 2.0**-900  # above this sum, squares that underflow (below 2**-1022) are negligible, even 2**60 of them


def clip_rows(array: Array, limit: tuple[float, float, float, float]) -> None:
    """Scale every row with a norm above the limit down to the limit, in place."""
    num_blocks, block_size = blocks_of(len(array), 2 * array.shape[1] * array.itemsize)
    terms = scratch(num_blocks, padded(array.shape[1]), np.float64)
    threads.run(norm.clip_rows, num_blocks, block_size, array, (*limit, terms))


def euclidean(arrays: list[Array]) -> float:
    """Return the Euclidean norm of all elements of (k, dim) arrays, in float64, without overflow of the squares."""
    total = _squares(arrays)
    if _SMALLEST < total < math.inf:
        return math.sqrt(total)
    largest = float(np.max([0.0, *(np.abs(array).max(initial=0) for array in arrays)]))  # NaN if any element is NaN
    if largest == 0 or not math.isfinite(largest):
        return largest
    # Squares overflow above 1e154 and underflow below 1e-154; scaling by a power of two does not round.
    exponent = math.frexp(largest)[1]
    scaled = _squares([np.ldexp(np.asarray(array, np.float64), -exponent) for array in arrays])
    with np.errstate(over="ignore"):
        return float(np.ldexp(math.sqrt(scaled), exponent))


def _squares(arrays: list[Array]) -> float:
    try:
        return math.fsum(map(_square, arrays))
    except OverflowError:  # the sum overflows
        return math.inf


def _square(array: Array) -> float:
    """Return the sum of squares of a (k, dim) array, in float64."""
    sums = np.empty(len(array))
    num_blocks, block_size = blocks_of(len(array), array.strides[0])
    arguments = (block_size, read_only(array), scratch(num_blocks, padded(array.shape[1]), np.float64), sums)
    threads.run(segment.row_squares, num_blocks, *arguments)
    with np.errstate(over="ignore"):
        return float(sums.sum())
