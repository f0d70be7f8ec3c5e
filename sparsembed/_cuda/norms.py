"""Rows scaled down to a largest norm."""

from typing import Any

import numpy as np

from ..kernels.cuda import norm
from . import blocks as cut
from .array import DeviceArray
from .sorting import Batch


def clip_rows(
    queue: Any,
    array: DeviceArray,
    limit: tuple[float, float, float, float],
    status: DeviceArray,
    batch: Batch | None = None,
    skip: int = -1,
) -> None:
    """Scale down rows whose norm is too large, in place: the rows of a plan, or all rows."""
    num_rows, dim = array.shape
    rows, n, found = (None, num_rows, None) if batch is None else (batch.rows, batch.n, batch.found)
    if n:
        shift = np.int32(min((dim - 1).bit_length(), 5))
        arguments = (array, rows, n, found, dim, skip, *limit, shift, status)
        queue.launch(norm.clip_rows, queue.blocks(n, cut.THREADS >> int(shift)), cut.THREADS, *arguments)
