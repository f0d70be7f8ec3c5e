"""Kernels that make scores of rows."""

from typing import Any

import numpy as np

from .. import _check as check
from .._jit import PRESENT
from ..kernels.cuda import dot as kernels
from ..kernels.cuda import loss as loss_kernels
from . import blocks as cut
from .array import DeviceArray
from .call import Call, make, queue_of
from .inputs import Table
from .reading import Place, bits_of, pool_rows
from .views import caller_of

_PARTS = 64  # of the losses of bags, each with a warp that sums it


def even_offsets(ids: Any, n: int, k: int) -> DeviceArray:
    """Return the offsets of n bags of k ids each, on the device of the caller's `ids`."""
    ends: DeviceArray = queue_of(caller_of(ids=ids)).upload(np.arange(n + 1, dtype=np.int64) * k)
    return ends


def dot_few(table: Table, place: Place, x: Any, padding: int, given: Any = None) -> Any:
    """Return None: a batch of any size takes the same launch."""


def dot(
    call: Call, table: Table, place: Place, x: DeviceArray, padding: int, out: DeviceArray, missed: Any = None
) -> None:
    """``out[p] = weight[ids[p]] @ x[bag of p]``; out (n,)."""
    _dot(call, table, _rows(call, table, place, missed), place, x, padding, out, missed)


def _rows(call: Call, table: Table, place: Place, missed: Any) -> DeviceArray:
    """Return the rows to read: those of the table, or an up-to-date copy of the row of each id."""
    if missed is None:
        return table.array
    rows: DeviceArray = call.queue.empty((len(place.ids), table.dim), table.dtype)
    missed.gather(call, place.ids, rows)
    return rows


def _dot(
    call: Call,
    table: Table,
    rows: DeviceArray,
    place: Place,
    x: DeviceArray,
    padding: int,
    out: DeviceArray,
    missed: Any,
) -> None:
    queue = call.queue
    if place.num_bags:
        lanes = cut.lanes_of(table.dim, out.dtype, rows, x)
        blocks = queue.blocks(place.num_bags, lanes.groups)
        where = (bits_of(rows), rows.stride, None if missed is None else PRESENT, *place.where)
        arguments = (*where, x, padding, table.dim, out, *lanes, call.status)
        queue.launch(kernels.dot_rows, blocks, cut.THREADS, *arguments)


def dot_loss(
    call: Call,
    table: Table,
    place: Place,
    x: DeviceArray,
    padding: int,
    loss: Any,
    labels: DeviceArray | None,
    shares: DeviceArray | None,
    scores: DeviceArray,
    grad_x: DeviceArray,
    missed: Any = None,
) -> Any:
    """Write the gradients of the scores (n,) and of x (num_bags, dim); return the loss, without dimensions."""
    queue, status, dtype, num_bags = call.queue, call.status, scores.dtype, place.num_bags
    rows = _rows(call, table, place, missed)
    _dot(call, table, rows, place, x, padding, scores, missed)
    losses, parts = queue.several(((num_bags,), np.float64), ((_PARTS,), np.float64))
    if num_bags:
        shift = np.int32(min((-(-len(place.ids) // num_bags) - 1).bit_length() if len(place.ids) else 0, 5))
        least, largest = loss.ends(dtype)
        marks = (scores, None) if labels is None else (labels, PRESENT)  # a stand-in: every loss is typed with labels
        how = (*marks, shares, padding, least, largest, loss.scalars(dtype), scores, losses, dtype.type(0))
        blocks = queue.blocks(num_bags, cut.THREADS >> int(shift))
        queue.launch(loss_kernels.loss_bags, blocks, cut.THREADS, *place.where, *how, shift, status)
    weighted = place._replace(weights=scores)
    pool_rows(queue, rows, weighted, check.MODES["sum"], padding, grad_x, status, missed is not None)
    total, made = make(queue, call.caller, (), dtype)
    # Twice, in parts that depend on the number of bags alone.
    for warps, numbers, n, out in ((_PARTS, losses, num_bags, parts), (1, parts, _PARTS, total)):
        threads = min(32 * warps, cut.THREADS)
        arguments = (numbers, n, -(-n // warps), warps, out, out.dtype.type(0), status)
        queue.launch(loss_kernels.sum_losses, 32 * warps // threads, threads, *arguments)
    return call.caller.framework.of_gpu(made)
