"""Start kernels that sum gradients and run rules, on checked arguments; only MemoryError is raised here."""

from typing import Any

import numpy as np

from .._typing import Array
from ..kernels.cpu import segment
from ..kernels.cpu import update as update_kernels
from . import memory, threads
from .blocks import blocks_of, fetch_ahead, padded, scratch
from .catch_up import Missed
from .gradients import Gradients
from .inputs import Table
from .prepared import NO_STATE
from .sorting import Sorted

_NO_PARTIALS = {kind: np.empty((0, 0), kind) for kind in (np.dtype(np.float32), np.dtype(np.float64))}


def segment_sum(call: Any, rows: Sorted, grads: Gradients, padding: int = -1) -> tuple[Array, Array]:
    """Return the rows without the padding row, and the sum of each row's gradients (k, dim)."""
    k, found = len(rows.rows), rows.rows
    values = memory.empty((k, grads.dim), grads.dtype)
    if k:
        num_blocks, block_size = blocks_of(k, grads.dim * grads.dtype.itemsize * (1 + len(rows.order) / k))
        hot = _hot(rows, grads) if len(rows.hot[0]) else (*rows.hot, _NO_PARTIALS[grads.dtype])
        arguments = (rows.order, rows.offsets, grads.kernel, hot, fetch_ahead(grads.grads))
        threads.run(segment.segment_sum, num_blocks, block_size, *arguments, values)
    if padding >= 0 and (keep := found != padding).sum() < k:
        found, values = found[keep], values[keep]
    elif rows.buffers:
        found = found.copy()  # the view would keep a buffer of one number per id alive
    found.flags.writeable = False
    rows.recycle()
    return found, values


def update(
    call: Any,
    contents: Any,
    rows: Sorted,
    grads: Gradients,
    skip: int,
    like: Any,
    missed: Missed | None,
    recording: bool = False,
) -> None:
    """Run the rule on every row except `skip`, clip rows to `max_norm`, and count the step, in one kernel."""
    if not len(rows.rows):
        contents.steps[0] += 1
        return
    arrays = (contents.state, contents.row_state, contents.steps)
    _update_rows(contents.table, *arrays, rows, grads, skip, like, missed, contents.limit)


def add_rows(call: Any, table: Table, rows: Sorted, grads: Gradients, like: Any) -> None:
    """Run a rule without state on every row of a weight."""
    if len(rows.rows):
        _update_rows(table, *NO_STATE[table.dtype], np.zeros(1, np.int64), rows, grads, -1, like, None, None)


def _update_rows(
    table: Table,
    state: Array,
    row_state: Array,
    steps: Array,
    rows: Sorted,
    grads: Gradients,
    skip: int,
    hyper: Any,
    missed: Missed | None,
    limit: Any,
) -> None:
    weight, k = table.array, len(rows.rows)
    dim, dtype = weight.shape[1], weight.dtype
    whole = missed is not None and missed.whole(k - _has(rows.rows, skip))
    items = table.num_rows if whole else k
    num_blocks, block_size = blocks_of(items, dim * dtype.itemsize * (1 + state.shape[1] + len(rows.order) / items))
    threads.run(
        update_kernels.update_rows,
        num_blocks,
        block_size,
        weight,
        state,
        row_state,
        steps,
        (rows.rows, rows.order, rows.offsets),
        grads.kernel,
        _hot(rows, grads) if len(rows.hot[0]) else (*rows.hot, _NO_PARTIALS[dtype]),
        skip,
        fetch_ahead(grads.grads, weight, table.lines, state.shape[1]),
        scratch(num_blocks, 3 * padded(dim), dtype),
        None if missed is None else missed.kernel(num_blocks),
        whole,
        None if limit is None else (*limit, scratch(num_blocks, padded(dim), np.float64)),
        hyper,
    )


def _has(rows: Array, row: int) -> bool:
    """Whether a row is among some rows in ascending order."""
    at = int(np.searchsorted(rows, row))
    return at < len(rows) and bool(rows[at] == row)


def _hot(rows: Sorted, grads: Gradients) -> tuple[Array, Array, Array]:
    """Sum the chunks of hot segments; return the fields of `kernels.cpu.segment.Hot`."""
    segments, offsets = rows.hot
    chunks = int(offsets[-1])
    partials = memory.empty((chunks, grads.dim), grads.dtype)
    hot = (segments, offsets, partials)
    arguments = (rows.order, rows.offsets, grads.kernel, hot, fetch_ahead(grads.grads))
    threads.run(segment.sum_hot, chunks, *arguments, wake=chunks // 12)  # 512 gradients take 12 us
    return hot
