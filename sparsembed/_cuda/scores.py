"""Kernels that make scores of rows."""

from typing import Any

import numpy as np

from .._jit import PRESENT
from ..kernels.cuda import dot as kernels
from . import blocks as cut
from .array import DeviceArray
from .call import Call, queue_of
from .inputs import Table
from .reading import Place, bits_of
from .views import caller_of


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
    queue, rows = call.queue, table.array
    if missed is not None:  # an up-to-date copy of the row of each id
        rows = queue.empty((len(place.ids), table.dim), table.dtype)
        missed.gather(call, place.ids, rows)
    if place.num_bags:
        lanes = cut.lanes_of(table.dim, out.dtype, rows, x)
        blocks = queue.blocks(place.num_bags, lanes.groups)
        where = (bits_of(rows), rows.stride, None if missed is None else PRESENT, *place.where)
        arguments = (*where, x, padding, table.dim, out, *lanes, call.status)
        queue.launch(kernels.dot_rows, blocks, cut.THREADS, *arguments)
