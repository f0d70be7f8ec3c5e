"""Kernels that sum gradients and run rules, on a stream of a GPU."""

from typing import Any, NamedTuple

import numpy as np

from ..kernels.cuda import segment
from ..kernels.cuda import update as update_kernels
from . import blocks as cut
from .array import DeviceArray
from .call import Call, lent
from .catch_up import Gaps, gaps_of
from .gradients import Gradients, Sums
from .inputs import Table
from .norms import clip_rows
from .sorting import Batch, Sorted
from .together import Together

_ONE_STEP = np.array([1, 0, 0])


def segment_sum(call: Call, rows: Sorted, grads: Gradients, padding: int = -1) -> Sums:
    """Return the gradient sum of each row, without the padding row; only the GPU knows the number of rows."""
    return Sums(rows, call, sum_segments(call.queue, rows.batch, grads, call.status), padding)


def update(
    call: Call,
    contents: Any,
    rows: Sorted,
    grads: Gradients,
    skip: int,
    like: Any,
    missed: Any,
    recording: bool = False,
) -> None:
    """Run a rule on every row but `skip`, clip rows to the largest norm, and count the step.

    All kernels that write are started together with the count of the step: see `together`.
    """
    where, table, status = contents.where, contents.table, call.status
    if recording:
        has_begun(contents)
    together = Together(call.queue)
    with lent(call.queue, where.home):
        if not recording:
            call.queue.write(where.hyper, np.array(like, table.dtype))
        gaps = None
        if missed is not None:
            batch = rows.batch
            gaps = gaps_of(call.queue, contents, batch.n, where.hyper, like, status, batch.rows, batch.found)
        trained = Trained(table.array, contents.state, contents.row_state)
        update_rows(together, trained, rows.batch, grads, skip, where.hyper, like, status, gaps)
        if contents.limit is not None:
            clip_rows(together, table.array, contents.limit, status, rows.batch, skip)
        together.start(*(() if recording else ((contents.steps.__iadd__, _ONE_STEP),)))


def has_begun(contents: Any) -> None:
    """Refuse to record a step that has not begun."""
    if contents.where.begun != (contents.rule, contents.step):
        raise ValueError("recording() is for a step that has begun; call begin_step() first")


def add_rows(call: Call, table: Table, rows: Sorted, grads: Gradients, like: Any) -> None:
    """Run a rule without state on every row of a weight."""
    state = DeviceArray(0, (table.num_rows, 0, table.dim), table.dtype, None)
    trained = Trained(table.array, state, DeviceArray(0, (table.num_rows, 0), table.dtype, None))
    together = Together(call.queue)
    hyper = call.queue.upload(np.array(like, table.dtype))
    update_rows(together, trained, rows.batch, grads, -1, hyper, like, call.status)
    together.start()


class Trained(NamedTuple):
    """The arrays that an update changes."""

    weight: DeviceArray
    state: DeviceArray  # (num_rows, slots, dim)
    row_state: DeviceArray  # (num_rows, row_slots)


def update_rows(
    queue: Any,
    table: Trained,
    batch: Batch,
    grads: Gradients,
    skip: int,
    hyper: DeviceArray,
    like: Any,
    status: DeviceArray,
    gaps: Gaps | None = None,
) -> None:
    """Sum each row's gradients and run a rule on it."""
    weight, state, row_state = table
    dim = weight.shape[1]
    slots, row_slots = state.shape[1], row_state.shape[1]
    flat = state if slots else None
    lanes = cut.lanes_of(dim, weight.dtype, weight, flat, grads.grad, grads.winners)
    gone = (None, 0, None, None, None, None) if gaps is None else (gaps.last, gaps.now, *gaps.kernel)
    after = (*grads.where, grads.divided, skip, dim, *gone, hyper, like, *lanes, status)
    before = (weight, state, row_state, slots, row_slots)
    where = (batch.rows, batch.order, batch.offsets, batch.found)
    partials = _sum_chunks(queue, batch, grads, lanes, status)
    blocks = queue.blocks(max(batch.n, 1), lanes.groups)
    queue.launch(update_kernels.update_rows, blocks, cut.THREADS, *before, *where, *after)
    if batch.n >= segment.SHORT:
        hot = (batch.hot, batch.hot_partials, partials)
        blocks = queue.blocks(len(batch.hot) - 1, 1)
        queue.launch(update_kernels.update_hot_rows, blocks, lanes.block, *before, *where, *hot, *after)


def sum_segments(queue: Any, batch: Batch, grads: Gradients, status: DeviceArray) -> DeviceArray:
    """Return the gradient sum of every row of the plan, in the first rows of (n, dim)."""
    dim = grads.grad.shape[1]
    values: DeviceArray = queue.empty((batch.n, dim), grads.grad.dtype)
    if batch.n == 0:
        return values
    lanes = cut.lanes_of(dim, values.dtype, values, grads.grad, grads.winners)
    partials = _sum_chunks(queue, batch, grads, lanes, status)
    after = (*grads.where, grads.divided, dim, values, *lanes, status)
    blocks = queue.blocks(batch.n, lanes.groups)
    queue.launch(segment.segment_sum, blocks, cut.THREADS, batch.order, batch.offsets, batch.found, *after)
    if batch.n >= segment.SHORT:
        hot = (batch.order, batch.offsets, batch.found, batch.hot, batch.hot_partials, partials)
        queue.launch(segment.segment_sum_hot, queue.blocks(len(batch.hot) - 1, 1), lanes.block, *hot, *after)
    return values


def _sum_chunks(queue: Any, batch: Batch, grads: Gradients, lanes: cut.Lanes, status: DeviceArray) -> DeviceArray:
    """Return the sums of the chunks of the longest segments, with space for the most chunks that n ids can have."""
    dim = grads.grad.shape[1]
    most = 2 * batch.n // segment.CHUNK
    partials: DeviceArray = queue.empty((max(most, 1), dim), grads.grad.dtype)
    if most:
        arguments = (batch.order, batch.chunks, batch.found, *grads.where, dim, partials, *lanes, status)
        queue.launch(segment.sum_hot, queue.blocks(most, 1), lanes.block, *arguments)
    return partials
