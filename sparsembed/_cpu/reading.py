"""Start kernels that read rows: gather, pool, and the gradient of per-sample weights.

The arguments have been checked; an error is raised here only if another thread changes ids during the call.
"""

from typing import Any, NamedTuple

import numpy as np

from .. import _check as check
from .._frameworks import Framework
from .._typing import Array
from ..kernels.cpu import gather as gather_kernels
from ..kernels.cpu import pool as pool_kernels
from . import threads
from .blocks import LINE, blocks_of, padded, scratch
from .catch_up import Missed
from .inputs import Table

_STREAM_BYTES = 1 << 22  # outputs of at least this size are written with non-temporal stores, past the cache


class Place(NamedTuple):
    """The arrays of bags: ids (n,), offsets (num_bags + 1,), and weights (n,) in the dtype of the arithmetic."""

    ids: Array
    offsets: Array
    weights: Array | None
    caller: Framework

    @property
    def num_bags(self) -> int:
        """Number of bags."""
        return len(self.offsets) - 1


def gather(call: Any, table: Table, flat: Array, out: Array, missed: Missed | None = None) -> None:
    """``out[i] = weight[flat[i]]``; out (n, dim)."""
    weight = table.read
    num_blocks, block_size = blocks_of(len(flat), weight.shape[1] * (weight.itemsize + out.itemsize))
    how = gather_kernels.ELEMENTS
    if table.by_row and weight.dtype == out.dtype:
        how = gather_kernels.ROWS
        if out.nbytes >= _STREAM_BYTES and out.strides[0] % LINE == 0:
            how = gather_kernels.STREAM if out.__array_interface__["data"][0] % LINE == 0 else how
    rows = None if missed is None else missed.reading(num_blocks)
    where = (block_size, weight, flat, how, table.lines, rows, out)
    if threads.run(gather_kernels.gather_rows, num_blocks, *where):
        raise changed()


def pool(
    call: Any, table: Table, place: Place, mode: int, padding: int, out: Array, missed: Missed | None = None
) -> Array | None:
    """Pool into out (num_bags, dim); return the winning occurrence of each element in mode max, else None."""
    num_blocks, block_size = _blocks(table, place)
    rows = None if missed is None else missed.reading(num_blocks)
    bags = (block_size, table.read, place.ids, place.offsets)
    if mode == check.MODES["max"]:
        winners = np.empty(out.shape, np.int32 if len(place.ids) < 2**31 else np.int64)
        if threads.run(pool_kernels.pool_max, num_blocks, *bags, padding, rows, out, winners):
            raise changed()
        return winners
    space = scratch(num_blocks, table.dim, out.dtype)
    how = (place.weights, mode, padding, table.lines, space, rows)
    if threads.run(pool_kernels.pool_rows, num_blocks, *bags, *how, out):
        raise changed()
    return None


def weights_gradient(call: Any, table: Table, place: Place, mode: int, padding: int, grad: Array, out: Array) -> None:
    """Write the gradient of the per-sample weights to out (n,)."""
    num_blocks, block_size = _blocks(table, place)
    space = scratch(num_blocks, padded(table.dim), np.float64)
    bags = (block_size, table.read, place.ids, place.offsets, place.weights, mode, padding, grad)
    if threads.run(pool_kernels.weights_gradient, num_blocks, *bags, table.lines, space, out):
        raise changed()


def _blocks(table: Table, place: Place) -> tuple[int, int]:
    row_bytes = table.dim * table.dtype.itemsize
    return blocks_of(place.num_bags, row_bytes * (1 + len(place.ids) / max(place.num_bags, 1)))


def changed() -> IndexError:
    """Return the error for ids that another thread changed between their check and their use.

    Kernels check the range of each id they read, so such a change cannot make them read outside of the table.
    """
    return IndexError(
        "ids were changed by another thread while their rows were read, and some were out of range; leave them as they "
        "are until the call returns, or pass a copy"
    )
