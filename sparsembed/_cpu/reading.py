"""Start kernels that read rows: gather, pool, and the gradient of per-sample weights.

The arguments have been checked, but for the range of the ids of a new result: kernels check it as they read.
"""

from typing import Any, NamedTuple

import numpy as np

from .. import _check as check
from .._frameworks import NUMPY, Framework, framework_of
from .._typing import Array
from ..kernels.cpu import few
from ..kernels.cpu import gather as gather_kernels
from ..kernels.cpu import pool as pool_kernels
from ..kernels.cpu._rows import NEAR_BYTES
from ..kernels.cpu.sort import first_outside
from . import threads
from .blocks import LINE, blocks_of, padded, scratch
from .catch_up import Missed
from .inputs import IDS, Table, in_range, table_of
from .memory import LARGE

FEW_BYTES = 1 << 20  # bytes of rows of a small batch: one thread, in one call, is as fast as two


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


def gather_few(weight: Any, ids: Any, table: Table | None = None, out: Any = None) -> Any:
    """Return the rows of a small batch, checked and copied in one compiled call, or None if `gather` has to do it.

    Batches of up to `LARGE` bytes go on to `gather` without more checks; `table` is that of the weight, if it is known.
    """
    array, caller = (ids, NUMPY) if type(ids) is np.ndarray else _plain(ids)
    if type(weight) is not np.ndarray:
        weight, kind = _plain(weight)
        caller = caller if kind is NUMPY else kind
    if weight is None or array is None or not _is_quick(weight) or array.dtype not in IDS:
        return None
    dim, n = weight.shape[1], array.size
    size, most = n * dim * weight.itemsize, FEW_BYTES << (weight.nbytes <= NEAR_BYTES)
    if size >= LARGE or not array.flags.carray:
        return None
    flat = array if array.ndim == 1 else array.reshape(n)
    if out is None:
        result = np.empty((*array.shape, dim), weight.dtype)
    elif _takes(out, (*array.shape, dim), weight, flat):
        result, caller = out, NUMPY
    else:
        return None
    rows = result if array.ndim == 1 else result.reshape(n, dim)
    if size > most:
        flat = flat.view()
        flat.setflags(write=False)
        if gather(None, table or table_of(weight), flat, rows):
            return None
    elif not few.gather_few(weight, flat, rows):
        return None
    return result if caller is NUMPY else caller.of_numpy(result)


def pool_few(weight: Any, place: Place, mode: int, padding: int, table: Table | None = None) -> Any:
    """Return the pooled rows of a small batch, in one compiled call; None if `pool` has to do it, as `gather_few`."""
    caller = place.caller
    if type(weight) is not np.ndarray:
        weight, kind = _plain(weight)
        caller = caller if kind is NUMPY else kind
    ids, offsets, weights, _ = place
    if weight is None or weights is not None or mode == check.MODES["max"] or not _is_quick(weight):
        return None
    dim, num_bags = weight.shape[1], len(offsets) - 1
    most = FEW_BYTES << 2 * (weight.nbytes <= NEAR_BYTES)  # rows in the cache take a quarter of the time
    if not caller.takes_any:
        return None
    if (size := num_bags * dim * weight.itemsize) >= LARGE:
        return None
    out = np.empty((num_bags, dim), weight.dtype)
    if size + len(ids) * dim * weight.itemsize > most and threads.num_threads() > 1:
        pool(None, table or table_of(weight), place, mode, padding, out)
    elif not few.pool_few(weight, ids, offsets, mode, padding, out):
        return None
    return out if caller is NUMPY else caller.of_numpy(out)


def _takes(out: Any, shape: tuple[int, ...], weight: Array, flat: Array) -> bool:
    """Whether rows may be written to the caller's `out`: it fits, and all ids are in range."""
    if type(out) is not np.ndarray or out.shape != shape or out.dtype != weight.dtype or not out.flags.carray:
        return False
    if np.may_share_memory(out, weight) or np.may_share_memory(out, flat):
        return False
    return bool(first_outside(flat, weight.shape[0]) < 0)


def _plain(value: Any) -> tuple[Array | None, Framework]:
    """Return a view of an array of another framework, if that takes no time, and its framework."""
    framework = framework_of(value)
    return framework.plain(value), framework


def _is_quick(weight: Array) -> bool:
    """Whether kernels of small batches are compiled for such a weight."""
    return weight.dtype in check.FLOATS and weight.flags.carray and weight.ndim == 2 and weight.shape[1] > 0


def gather(call: Any, table: Table, flat: Array, out: Array, missed: Missed | None = None) -> bool:
    """``out[i] = weight[flat[i]]``; out (n, dim).  Return whether ids were out of range, and `out` has no use then."""
    if table.num_rows == 0:
        return len(flat) > 0
    weight = table.read
    num_blocks, block_size = blocks_of(len(flat), weight.shape[1] * (weight.itemsize + out.itemsize))
    how = gather_kernels.ELEMENTS
    if table.by_row and weight.dtype == out.dtype:
        how = gather_kernels.ROWS
        if out.nbytes >= LARGE and out.strides[0] % LINE == 0:
            how = gather_kernels.STREAM if out.__array_interface__["data"][0] % LINE == 0 else how
    rows = None if missed is None else missed.reading(num_blocks)
    lines = table.fetch if missed is None else table.lines
    where = (block_size, weight, flat, how, lines, rows, out)
    return threads.run(gather_kernels.gather_rows, num_blocks, *where)


def pool(
    call: Any, table: Table, place: Place, mode: int, padding: int, out: Array, missed: Missed | None = None
) -> Array | None:
    """Pool into out (num_bags, dim); return the winning occurrence of each element in mode max, else None."""
    if table.num_rows == 0 and len(place.ids):
        raise outside(table, place)
    num_blocks, block_size = bag_blocks(table, place)
    rows = None if missed is None else missed.reading(num_blocks)
    bags = (block_size, table.read, place.ids, place.offsets)
    if mode == check.MODES["max"]:
        winners = np.empty(out.shape, np.int32 if len(place.ids) < 2**31 else np.int64)
        if threads.run(pool_kernels.pool_max, num_blocks, *bags, padding, rows, out, winners):
            raise outside(table, place)
        return winners
    space = None if table.by_row and missed is None else scratch(num_blocks, table.dim, out.dtype)
    lines = table.fetch if missed is None else table.lines
    how = (place.weights, mode, padding, lines, space, rows)
    if threads.run(pool_kernels.pool_rows, num_blocks, *bags, *how, out):
        raise outside(table, place)
    return None


def weights_gradient(call: Any, table: Table, place: Place, mode: int, padding: int, grad: Array, out: Array) -> None:
    """Write the gradient of the per-sample weights to out (n,)."""
    num_blocks, block_size = bag_blocks(table, place)
    space = scratch(num_blocks, padded(table.dim), np.float64)
    bags = (block_size, table.read, place.ids, place.offsets, place.weights, mode, padding, grad)
    if threads.run(pool_kernels.weights_gradient, num_blocks, *bags, table.lines, space, out):
        raise outside(table, place)


def bag_blocks(table: Table, place: Place) -> tuple[int, int]:
    """Return (number of blocks, bags per block)."""
    row_bytes = table.dim * table.dtype.itemsize
    return blocks_of(place.num_bags, row_bytes * (1 + len(place.ids) / max(place.num_bags, 1)))


def outside(table: Table, place: Place) -> IndexError:
    """Return the error for ids of bags that a kernel has met out of range."""
    in_range(place.ids, table.num_rows, "bags.ids", place.ids.shape)
    return check.changed()
