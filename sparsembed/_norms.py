"""Norms: that of arrays taken together, and rows scaled down to a largest norm."""

import math
from typing import Any

import numpy as np

from . import _threads
from ._arrays import Array
from ._lag import padded
from ._launch import Limit, _blocks, _scratch, as_input
from .kernels.cpu import norm, segment

_SHARE = {"f": 1 - 2.0**-24, "d": 1 - 2.0**-48}  # of a largest norm: what rounding adds stays below it
_SMALLEST = 2.0**-900  # what squares below 2**-1022 lose, of up to 2**60 numbers, does not count beside it


def limit(max_norm: float, norm_type: float, extra: float, array: Any) -> Limit:
    """Return what kernels need to scale rows of an array by ``max_norm / (norm + extra)``."""
    return max_norm, norm_type, extra, _SHARE[array.dtype.char]


def clip_rows(array: Array, limit: Limit) -> None:
    """Scale down every row that is too large, in place."""
    num_blocks, block_size = _blocks(len(array), 2 * array.shape[1] * array.itemsize)
    terms = _scratch(num_blocks, padded(array.shape[1]), np.float64)
    _threads.run(norm.clip_rows, num_blocks, block_size, array, (*limit, terms))


def euclidean(arrays: list[Array]) -> float:
    """Euclidean norm of all numbers in arrays of rows (k, dim), in float64; infinite only if the norm is too large."""
    total = _squares(arrays)
    if _SMALLEST < total < math.inf:
        return math.sqrt(total)
    largest = float(np.max([0.0, *(np.abs(array).max(initial=0) for array in arrays)]))  # NaN, if there is one
    if largest == 0 or not math.isfinite(largest):
        return largest
    # Squares of float64 from about 1e154 on overflow, below 1e-154 underflow: a power of two scales without rounding.
    exponent = math.frexp(largest)[1]
    scaled = _squares([np.ldexp(np.asarray(array, np.float64), -exponent) for array in arrays])
    with np.errstate(over="ignore"):
        return float(np.ldexp(math.sqrt(scaled), exponent))


def _squares(arrays: list[Array]) -> float:
    try:
        return math.fsum(map(_square, arrays))
    except OverflowError:  # each fits, and their sum does not
        return math.inf


def _square(array: Array) -> float:
    """Sum of squares of an array of rows (k, dim), in float64."""
    sums = np.empty(len(array))
    num_blocks, block_size = _blocks(len(array), array.strides[0])
    arguments = (block_size, as_input(array), _scratch(num_blocks, padded(array.shape[1]), np.float64), sums)
    _threads.run(segment.row_squares, num_blocks, *arguments)
    with np.errstate(over="ignore"):
        return float(sums.sum())
