"""Start kernels that make scores of rows; the arguments have been checked, but for the range of ids."""

import math
from typing import Any

import numpy as np

from .. import _check as check
from .._frameworks import NUMPY, framework_of
from .._typing import Array
from ..kernels.cpu import dot as kernels
from ..kernels.cpu import loss as loss_kernels
from ..kernels.cpu._rows import NEAR_BYTES
from . import threads
from .blocks import blocks_of, scratch
from .catch_up import Missed
from .entry import host_array
from .inputs import Table
from .memory import LARGE
from .reading import FEW_BYTES, Place, bag_blocks, outside
from .views import read_only


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


def dot_loss(
    call: Any,
    table: Table,
    place: Place,
    x: Array,
    padding: int,
    loss: Any,
    labels: Array | None,
    shares: Array | None,
    scores: Array,
    grad_x: Array,
    missed: Missed | None = None,
) -> float:
    """Write the gradients of scores (n,) and of x, and return the loss; all are wrong after an error."""
    if table.num_rows == 0 and len(place.ids):
        raise outside(table, place)
    num_blocks, block_size = bag_blocks(table, place)
    rows = None if missed is None else missed.reading(num_blocks)
    dtype, losses = scores.dtype, np.empty(place.num_bags + 1)
    space = None if table.by_row and missed is None else scratch(num_blocks, table.dim, dtype)
    values = scratch(num_blocks, loss_kernels.CHUNK, dtype)
    members, kept = (len(values), loss_kernels.KEPT) if missed is not None else (0, 0)
    rooms = (values, np.empty((members, kept, table.dim), dtype))
    lines = table.fetch if missed is None else table.lines
    nothing = np.empty(0, dtype)
    nothing.flags.writeable = False
    least, largest = loss.ends(dtype)
    # Contiguous vectors: each layout of an array compiles for seconds, and there is one version for each loss.
    bags = (block_size, table.read, place.ids, place.offsets, read_only(x), padding, lines, space, rows)
    how = (loss.scalars(dtype), nothing if labels is None else labels, least, largest)
    outputs = (nothing if shares is None else shares, *rooms, scores, grad_x, losses)
    if threads.run(loss_kernels.dot_loss_rows, num_blocks, *bags, *how, *outputs):
        raise outside(table, place)
    total = float(losses[-1])
    if math.isnan(total) and labels is not None:
        check_labels(labels, place.ids, padding, loss)
    return total


def check_labels(labels: Array, ids: Array, padding: int, loss: Any) -> None:
    """Refuse labels that the loss does not allow, but for those of padding."""
    least, largest = loss.ends(labels.dtype)
    wrong = ~((labels >= least) & (labels <= largest)) & (ids != padding)
    if wrong.any():
        at = int(np.argmax(wrong))
        advice = "scale, fill or drop such labels"
        if labels[at] == -1 and largest == 1:
            advice = "labels of -1 and 1 become 0 and 1 with (labels + 1) / 2"
        raise ValueError(
            f"labels must be numbers from {least} to {largest} for {type(loss).__name__}, got {labels[at]} at score "
            f"{at}; {advice}"
        )
