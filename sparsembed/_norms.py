"""Norms of rows: the sum of squares of an array, and rows scaled down to a largest norm."""

import numpy as np

from . import _threads
from ._arrays import Array
from ._lag import padded
from ._launch import Limit, _blocks, _scratch, as_input
from .kernels.cpu import norm, segment

_SHARE = {"f": 1 - 2.0**-24, "d": 1 - 2.0**-48}  # of a largest norm: what rounding adds stays below it


def limit(max_norm: float, norm_type: float, extra: float, array: Array) -> Limit:
    """Return what kernels need to scale rows of an array by ``max_norm / (norm + extra)``."""
    return max_norm, norm_type, extra, _SHARE[array.dtype.char]


def clip_rows(array: Array, limit: Limit) -> None:
    """Scale down every row that is too large, in place."""
    num_blocks, block_size = _blocks(len(array), 2 * array.shape[1] * array.itemsize)
    terms = _scratch(num_blocks, padded(array.shape[1]), np.float64)
    _threads.run(norm.clip_rows, num_blocks, block_size, array, (*limit, terms))


def square(array: Array) -> float:
    """Sum of squares of an array of rows (k, dim), in float64."""
    sums = np.empty(len(array))
    num_blocks, block_size = _blocks(len(array), array.strides[0])
    arguments = (block_size, as_input(array), _scratch(num_blocks, padded(array.shape[1]), np.float64), sums)
    _threads.run(segment.row_squares, num_blocks, *arguments)
    return float(sums.sum())
