"""Start kernels that make scores of rows; the arguments have been checked, but for the range of ids."""

from typing import Any

import numpy as np

from .. import _check as check
from .._frameworks import NUMPY, framework_of
from .._typing import Array
from ..kernels.cpu import dot as kernels
from ..kernels.cpu._rows import NEAR_BYTES
from . import threads
from .blocks import blocks_of, scratch
from .catch_up import Missed
from .entry import host_array
from .inputs import Table
from .memory import LARGE
from .reading import FEW_BYTES, Place, outside


def even_offsets(ids: Any, n: int, k: int) -> Array:
    """Return the offsets of n bags of k ids each."""
    ends = np.arange(n + 1, dtype=np.int64)
    ends *= k
    ends.setflags(write=False)
    return ends


def dot_few(table: Table, place: Place, x: Any, padding: int, given: Any = None) -> Any:
    """Return the scores of a small batch, in one compiled call; None if `dot` has to do it, with the checks before."""
    weight, ids, vectors = table.array, place.ids, host_array(x)
    if vectors is None or vectors.dtype != weight.dtype or vectors.shape != (place.num_bags, table.dim):
        return None
    most = FEW_BYTES << 2 * (weight.nbytes <= NEAR_BYTES)
    if weight.dtype not in check.FLOATS or not weight.flags.carray or len(ids) * weight.itemsize >= LARGE:
        return None
    if len(ids) * table.dim * weight.itemsize > most and threads.num_threads() > 1:
        return None
    out = np.empty(len(ids), weight.dtype)
    if not kernels.dot_few(weight, ids, place.offsets, vectors, padding, out):
        return None
    frameworks = (framework_of(each) for each in (given, x) if each is not None)
    caller = next((each for each in frameworks if each is not NUMPY), place.caller)
    return out if caller is NUMPY else caller.of_numpy(out)


def dot(
    call: Any, table: Table, place: Place, x: Array, padding: int, out: Array, missed: Missed | None = None
) -> None:
    """``out[p] = weight[ids[p]] @ x[bag of p]``; out (n,)."""
    n = len(place.ids)
    if table.num_rows == 0 and n:
        raise outside(table, place)
    num_blocks, block_size = blocks_of(n, table.dim * table.dtype.itemsize)
    rows = None if missed is None else missed.reading(num_blocks)
    space = None if table.by_row or missed is not None else scratch(num_blocks, table.dim, out.dtype)
    lines = table.fetch if missed is None else table.lines
    arguments = (block_size, table.read, place.ids, place.offsets, x, padding, lines, space, rows, out)
    if threads.run(kernels.dot_rows, num_blocks, *arguments):
        raise outside(table, place)
