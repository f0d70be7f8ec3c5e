"""How CUDA kernels are started: threads, blocks and workspace; mirrors `sparsembed._launch`.

Everything here has been validated.  A `queue` stands for a stream of a device: it makes arrays (`empty`, `filled`)
and starts kernels, in order.  `status` (1,) tells all kernels of a call whether an id is out of range.
"""

from typing import Any, NamedTuple

import numpy as np

from .._jit import PRESENT
from ..kernels.cuda import norm, segment, sort, update
from .array import DeviceArray

THREADS = 256
_LANE_BYTES = 16


class Lanes(NamedTuple):
    """How rows are cut: `zero` as wide as what one thread moves, and groups of ``2**shift`` threads."""

    zero: tuple[Any, ...]
    shift: np.int32

    @property
    def groups(self) -> int:
        """Groups in a block."""
        return THREADS >> int(self.shift)

    @property
    def block(self) -> int:
        """Threads of a block that shares a row."""
        return max(32, segment.SLICES << int(self.shift))


def lanes_of(dim: int, dtype: Any, *arrays: DeviceArray | None) -> Lanes:
    """Cut rows of `dim` numbers: 16 bytes a thread if all arrays allow that."""
    dtype = np.dtype(dtype)
    given = [each for each in arrays if each is not None]
    width = max(_LANE_BYTES // min(each.dtype.itemsize for each in given), 1)
    for each in given:
        stride = each.stride if len(each.shape) > 1 else width
        if dim % width or each.pointer % _LANE_BYTES or stride * each.dtype.itemsize % _LANE_BYTES:
            width = 1
    shift = min((-(-dim // width) - 1).bit_length(), 5)
    return Lanes((dtype.type(0),) * width, np.int32(shift))


def new_status(queue: Any) -> DeviceArray:
    """All ids are in range so far."""
    status: DeviceArray = queue.filled((1,), np.uint64, 0xFF)
    return status


def check_ids(queue: Any, ids: DeviceArray, num_rows: int, status: DeviceArray, call: int) -> None:
    """Note in `status` whether an id is out of range, and on the record of the queue."""
    n = ids.size
    if n:
        blocks = queue.blocks(n, THREADS)
        queue.launch(sort.first_outside, blocks, THREADS, ids, n, num_rows, status, queue.record, call)


def check_offsets(queue: Any, offsets: DeviceArray, n: int, status: DeviceArray, call: int) -> None:
    """Note in `status` whether offsets do not make bags of n ids."""
    bags = len(offsets) - 1
    blocks = queue.blocks(bags + 1, THREADS)
    queue.launch(sort.bad_offsets, blocks, THREADS, offsets, bags, n, status, queue.record, call)


class Plan(NamedTuple):
    """Sorted ids on the device; k rows, of which only the device knows how many."""

    rows: DeviceArray
    order: DeviceArray
    offsets: DeviceArray
    found: DeviceArray  # rows, hot segments, chunks
    hot: DeviceArray
    hot_partials: DeviceArray
    chunks: DeviceArray
    n: int


def plan(queue: Any, ids: DeviceArray, num_rows: int, bag_offsets: DeviceArray | None = None, kind: Any = None) -> Plan:
    """Sort ids (n,) that `check_ids` has seen; `order` holds bags if `bag_offsets` is given."""
    n, index = ids.size, np.dtype(np.int32)
    kind = index if num_rows <= 2**31 else np.dtype(np.int64)
    turns = range(0, max((num_rows - 1).bit_length(), 1), 8)
    tiles, some = -(-n // sort.TILE), (n // segment.SHORT + 1,)
    kept = (((n,), ids.dtype), ((n + 1,), index), ((n,), index), ((3,), index))
    rows, offsets, order, found, hot, hot_partials, chunks = queue.several(
        *kept, (some, index), (some, index), ((2 * n // segment.CHUNK + 2, 2), index)
    )
    if n == 0:
        return Plan(rows, order, offsets, queue.filled((3,), index, 0), hot, hot_partials, chunks, 0)
    first, second, other, counts, totals, heads = queue.several(
        ((n,), kind), ((n,), kind), ((n,), index), ((sort.DIGITS, tiles), index), ((sort.DIGITS,), index),
        ((tiles,), index),
    )  # fmt: skip
    keys, labels = ids, None
    bags = 0 if bag_offsets is None else len(bag_offsets) - 1
    scanning = min(sort.THREADS, -(-tiles // 32) * 32)
    for turn, low in enumerate(turns):
        last = (len(turns) - 1 - turn) % 2 == 0  # the last turn, and each second one before it, ends where it is kept
        to_keys, to_labels = (first, order) if last else (second, other)
        queue.launch(sort.count_digits, tiles, sort.THREADS, keys, n, low, counts, tiles)
        queue.launch(sort.place_digits, sort.DIGITS, scanning, counts, tiles, totals)
        moved = (keys, labels, n, low, counts, totals, tiles, bag_offsets if turn == 0 else None, bags)
        queue.launch(sort.move_keys, tiles, sort.THREADS, *moved, to_keys, to_labels)
        keys, labels = to_keys, to_labels
    queue.launch(sort.count_heads, tiles, sort.THREADS, keys, n, heads)
    queue.launch(sort.place_heads, 1, scanning, heads, tiles, found)
    queue.launch(sort.write_segments, tiles, sort.THREADS, keys, n, heads, rows, offsets)
    blocks = queue.blocks(n, THREADS)
    queue.launch(sort.find_hot, blocks, THREADS, offsets, found, hot, hot_partials, chunks)
    return Plan(rows, order, offsets, found, hot, hot_partials, chunks, n)


def one_each(queue: Any, batch: Plan) -> Plan:
    """A plan of the same rows that have one gradient each, in their order."""
    numbers, found = queue.several(((batch.n + 1,), np.int32), ((3,), np.int32))
    queue.launch(sort.count_up, queue.blocks(batch.n + 1, THREADS), THREADS, numbers, batch.n + 1, batch.found, found)
    return batch._replace(order=numbers, offsets=numbers, found=found)


class Gradients(NamedTuple):
    """Where the gradient of each occurrence lies; see `kernels.cuda.segment`."""

    grad: DeviceArray
    bags: DeviceArray | None = None
    coefs: DeviceArray | None = None
    winners: DeviceArray | None = None
    by_count: bool = False

    @property
    def where(self) -> tuple[Any, ...]:
        """What kernels take."""
        return self.grad, self.bags, self.coefs, self.winners

    @property
    def divided(self) -> int | None:
        """What kernels take for `by_count`."""
        return PRESENT if self.by_count else None


def _sum_chunks(queue: Any, batch: Plan, grads: Gradients, lanes: Lanes, status: DeviceArray) -> DeviceArray:
    """Sum the chunks of the longest segments; room for all that n ids can have."""
    dim = grads.grad.shape[1]
    most = 2 * batch.n // segment.CHUNK
    partials: DeviceArray = queue.empty((max(most, 1), dim), grads.grad.dtype)
    if most:
        arguments = (batch.order, batch.chunks, batch.found, *grads.where, dim, partials, *lanes, status)
        queue.launch(segment.sum_hot, queue.blocks(most, 1), lanes.block, *arguments)
    return partials


def segment_sum(queue: Any, batch: Plan, grads: Gradients, status: DeviceArray) -> DeviceArray:
    """Return the gradient sum of every row of the plan, in the first rows of (n, dim)."""
    dim = grads.grad.shape[1]
    values: DeviceArray = queue.empty((batch.n, dim), grads.grad.dtype)
    if batch.n == 0:
        return values
    lanes = lanes_of(dim, values.dtype, values, grads.grad, grads.winners)
    partials = _sum_chunks(queue, batch, grads, lanes, status)
    after = (*grads.where, grads.divided, dim, values, *lanes, status)
    blocks = queue.blocks(batch.n, lanes.groups)
    queue.launch(segment.segment_sum, blocks, THREADS, batch.order, batch.offsets, batch.found, *after)
    if batch.n >= segment.SHORT:
        hot = (batch.order, batch.offsets, batch.found, batch.hot, batch.hot_partials, partials)
        queue.launch(segment.segment_sum_hot, queue.blocks(len(batch.hot) - 1, 1), lanes.block, *hot, *after)
    return values


class Table(NamedTuple):
    """What an update changes."""

    weight: DeviceArray
    state: DeviceArray  # (num_rows, slots, dim)
    row_state: DeviceArray  # (num_rows, row_slots)


class Lag(NamedTuple):
    """What rows need that miss steps; see `kernels.cuda.catch_up`."""

    last: DeviceArray
    now: int
    gap_coefs: DeviceArray
    spans: DeviceArray
    past: DeviceArray
    gaps: Any

    @property
    def kernel(self) -> tuple[Any, ...]:
        """What kernels that read take."""
        return self.gap_coefs, self.spans, self.past, self.gaps


def update_rows(
    queue: Any,
    table: Table,
    batch: Plan,
    grads: Gradients,
    skip: int,
    hyper: DeviceArray,
    like: Any,
    status: DeviceArray,
    lag: Lag | None = None,
) -> None:
    """Sum each row's gradients and run a rule on it."""
    weight, state, row_state = table
    dim = weight.shape[1]
    slots, row_slots = state.shape[1], row_state.shape[1]
    flat = state if slots else None
    lanes = lanes_of(dim, weight.dtype, weight, flat, grads.grad, grads.winners)
    late = (None, 0, None, None, None, None) if lag is None else (lag.last, lag.now, *lag.kernel)
    after = (*grads.where, grads.divided, skip, dim, *late, hyper, like, *lanes, status)
    before = (weight, state, row_state, slots, row_slots)
    where = (batch.rows, batch.order, batch.offsets, batch.found)
    partials = _sum_chunks(queue, batch, grads, lanes, status)
    blocks = queue.blocks(max(batch.n, 1), lanes.groups)
    queue.launch(update.update_rows, blocks, THREADS, *before, *where, *after)
    if batch.n >= segment.SHORT:
        hot = (batch.hot, batch.hot_partials, partials)
        blocks = queue.blocks(len(batch.hot) - 1, 1)
        queue.launch(update.update_hot_rows, blocks, lanes.block, *before, *where, *hot, *after)


def clip_rows(
    queue: Any,
    array: DeviceArray,
    limit: tuple[float, float, float, float],
    status: DeviceArray,
    batch: Plan | None = None,
    skip: int = -1,
) -> None:
    """Scale down rows that are too large, in place: those of a plan, or all."""
    num_rows, dim = array.shape
    rows, n, found = (None, num_rows, None) if batch is None else (batch.rows, batch.n, batch.found)
    if n:
        shift = np.int32(min((dim - 1).bit_length(), 5))
        arguments = (array, rows, n, found, dim, skip, *limit, shift, status)
        queue.launch(norm.clip_rows, queue.blocks(n, THREADS >> int(shift)), THREADS, *arguments)
