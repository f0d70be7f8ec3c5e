"""How kernels are started: block sizes, scratch rows, and where gradients lie.

Everything here has been validated; nothing here raises, short of memory that runs out and ids that another thread
changes.
"""

from typing import Any

import numpy as np

from . import _memory, _threads
from ._arrays import Array
from ._jit import PRESENT
from ._lag import Lag, padded
from ._prefetch import LINE, fetch_ahead, lines_of
from .bags import Bags
from .kernels.cpu import catch_up, restore, segment, update
from .kernels.cpu import gather as gather_kernels
from .kernels.cpu import pool as pool_kernels
from .plan import Plan

_BLOCK_BYTES = 1 << 19  # one claim of work: rows prefetched across its end warm the wrong core's cache
_SERIAL_BYTES = 1 << 20  # below this, waking a thread costs more than it saves
_STREAM_BYTES = 1 << 22  # outputs from here on are written past the cache

Limit = tuple[float, float, float, float]  # `limit` of `kernels.cpu.norm`, without its room


def _blocks(count: int, bytes_each: float) -> tuple[int, int]:
    """Return (number of blocks, items per block); results never depend on either."""
    if count * bytes_each < _SERIAL_BYTES:
        return 1, max(count, 1)
    items = max(1, int(_BLOCK_BYTES / bytes_each))
    return -(-count // items), items


def _scratch(num_blocks: int, width: int, dtype: Any) -> Array:
    """Return zeros (threads, width): room for one row of arithmetic each."""
    if num_blocks == 1:
        return np.zeros((1, width), dtype)
    return _memory.zeros((_threads.num_threads(), width), dtype)


class Gradients:
    """Where the gradient of each occurrence lies; see `kernels.cpu.segment`.

    Parameters
    ----------
    grads : list of arrays (m, dim), contiguous within a row
        One per lookup, or per set of bags.
    counts : list of int
        Occurrences in each.
    bags, coefs, winners : arrays or None
        For pooled lookups.
    by_count : bool
        Divide each row's sum by the number of its occurrences.
    """

    def __init__(
        self,
        grads: list[Array],
        counts: list[int],
        bags: Array | None = None,
        coefs: Array | None = None,
        winners: Array | None = None,
        by_count: bool = False,
    ) -> None:
        self.grads = grads  # kept alive here: kernels see addresses only
        self.coefs = coefs
        self.dim = grads[0].shape[1]
        self.dtype = grads[0].dtype
        rows, start = [], 0
        for grad, count in zip(grads, counts, strict=True):
            rows.append((start, grad.__array_interface__["data"][0], grad.strides[0]))
            start += count
        self.kernel = (np.array(rows, np.int64), bags, coefs, winners, PRESENT if by_count else None)


def _hot(plan: Plan, grads: Gradients) -> tuple[Array, Array, Array]:
    """Sum the chunks of hot segments; returns what kernels need to combine them."""
    segments, offsets = plan._hot
    chunks = int(offsets[-1])
    if not chunks:
        return segments, offsets, np.empty((0, 0), grads.dtype)
    partials = _memory.empty((chunks, grads.dim), grads.dtype)
    hot = (segments, offsets, partials)
    arguments = (plan.order, plan.segment_offsets, grads.kernel, hot, fetch_ahead(grads.grads))
    _threads.run(segment.sum_hot, chunks, *arguments, kept=grads)
    return hot


def _deferred(lag: Lag | None, num_blocks: int) -> tuple[Any, ...] | None:
    return None if lag is None else lag.deferred(num_blocks)


def flush_rows(weight: Array, state: Array, steps: Array, lag: Lag) -> None:
    """Bring every row up to date, and note in `steps` that a history starts."""
    num_blocks, block_size = _blocks(len(weight), weight.shape[1] * weight.itemsize * (2 + 2 * state.shape[1]))
    _threads.run(catch_up.flush_rows, num_blocks, block_size, weight, state, steps, lag.kernel(num_blocks), lag.hyper)


def restore_rows(
    weight: Array, pairs: list[tuple[Array, Array]], padding: int, last: Array, steps: Array, step: int
) -> None:
    """Copy the second array of each pair to the first, clear a row of the weights, and put the table at a step."""
    jobs = np.zeros((len(pairs), 8), np.int64)
    for job, (to, since) in zip(jobs, pairs, strict=True):
        size = to.itemsize
        for place, array in ((0, to), (3, since)):
            apart = array.strides[1] if array.ndim > 1 and array.shape[1] > 1 else size
            job[place : place + 3] = array.__array_interface__["data"][0], array.strides[0], apart
        job[6:] = to.shape[1] if to.ndim > 1 else 1, size
    num_blocks, block_size = _blocks(len(weight), 2 * sum(int(columns * size) for columns, size in jobs[:, 6:]))
    arguments = (jobs, _bits(weight), padding, last, steps, step)
    _threads.run(restore.restore_rows, num_blocks, block_size, *arguments, kept=pairs)


def update_rows(
    weight: Array,
    state: Array,
    row_state: Array,
    steps: Array,
    plan: Plan,
    grads: Gradients,
    skip: int,
    hyper: Any,
    lag: Lag | None = None,
    limit: Limit | None = None,
) -> None:
    """Sum each row's gradients, run a rule on it, scale it down to a largest norm, and count the step."""
    row_bytes = weight.shape[1] * weight.itemsize
    k, n = len(plan.rows), len(plan.order)
    if k == 0:
        steps[0] += 1
        return
    hot = _hot(plan, grads)
    num_blocks, block_size = _blocks(k, row_bytes * (1 + state.shape[1] + n / k))
    _threads.run(
        update.update_rows,
        num_blocks,
        block_size,
        weight,
        state,
        row_state,
        steps,
        (plan.rows, plan.order, plan.segment_offsets),
        grads.kernel,
        hot,
        skip,
        fetch_ahead(grads.grads, weight, state.shape[1]),
        _scratch(num_blocks, 3 * padded(weight.shape[1]), weight.dtype),
        None if lag is None else lag.kernel(num_blocks),
        None if limit is None else (*limit, _scratch(num_blocks, padded(weight.shape[1]), np.float64)),
        hyper,
        kept=grads,
    )


def segment_sum(plan: Plan, grads: Gradients) -> Array:
    """Return the gradient sum of every row of the plan, (k, dim)."""
    k, n = len(plan.rows), len(plan.order)
    values = _memory.empty((k, grads.dim), grads.dtype)
    if k == 0:
        return values
    hot = _hot(plan, grads)
    row_bytes = grads.dim * grads.dtype.itemsize
    num_blocks, block_size = _blocks(k, row_bytes * (1 + n / k))
    arguments = (block_size, plan.order, plan.segment_offsets, grads.kernel, hot, fetch_ahead(grads.grads))
    _threads.run(segment.segment_sum, num_blocks, *arguments, values, kept=grads)
    return values


def _read(kernel: Any, num_blocks: int, *arguments: Any) -> None:
    """Run a kernel that reads rows.

    Another thread that changes ids between their check and their use cannot make it read outside of the table.
    """
    if _threads.run(kernel, num_blocks, *arguments):
        raise IndexError(
            "ids were changed by another thread while their rows were read, and some were out of range; leave them as "
            "they are until the call returns, or pass a copy"
        )


def gather(weight: Array, ids: Array, out: Array, lag: Lag | None = None) -> None:
    """``out[i] = weight[ids[i]]``; out (n, dim)."""
    dim = weight.shape[1]
    num_blocks, block_size = _blocks(len(ids), dim * (weight.itemsize + out.itemsize))
    weight = as_input(weight)
    how = gather_kernels.ELEMENTS
    if weight.dtype == out.dtype and (weight.strides[1] == weight.itemsize or dim == 1):
        aligned = out.strides[0] % LINE == 0 and out.__array_interface__["data"][0] % LINE == 0
        stream = aligned and out.nbytes >= _STREAM_BYTES
        how = gather_kernels.STREAM if stream else gather_kernels.ROWS
    _read(
        gather_kernels.gather_rows,
        num_blocks,
        block_size,
        weight,
        ids,
        how,
        lines_of(weight),
        _deferred(lag, num_blocks),
        out,
    )


def as_input(weight: Array) -> Array:
    """View a table as read-only, and float16 as the uint16 that kernels take."""
    view = _bits(weight)
    view.flags.writeable = False
    return view


def _bits(weight: Array) -> Array:
    return weight.view(np.uint16) if weight.dtype == np.float16 else weight.view()


def _bag_blocks(bags: Bags, row_bytes: int) -> tuple[int, int]:
    return _blocks(bags.num_bags, row_bytes * (1 + len(bags.ids) / max(bags.num_bags, 1)))


def pool(
    weight: Array, bags: Bags, weights: Array | None, mode: int, padding: int, out: Array, lag: Lag | None = None
) -> None:
    """Pool with SUM, MEAN or SQRTN into out (num_bags, dim)."""
    row_bytes = weight.shape[1] * weight.itemsize
    num_blocks, block_size = _bag_blocks(bags, row_bytes)
    arguments = (block_size, as_input(weight), bags.ids, bags.offsets, weights, mode, padding, lines_of(weight))
    scratch = _scratch(num_blocks, weight.shape[1], out.dtype)
    _read(pool_kernels.pool_rows, num_blocks, *arguments, scratch, _deferred(lag, num_blocks), out)


def pool_max(weight: Array, bags: Bags, padding: int, out: Array, lag: Lag | None = None) -> Array:
    """Pool with MAX into `out`; returns the occurrence that won each element, (num_bags, dim)."""
    winners = np.empty(out.shape, np.int32 if len(bags.ids) < 2**31 else np.int64)
    num_blocks, block_size = _bag_blocks(bags, weight.shape[1] * weight.itemsize)
    arguments = (block_size, as_input(weight), bags.ids, bags.offsets, padding)
    _read(pool_kernels.pool_max, num_blocks, *arguments, _deferred(lag, num_blocks), out, winners)
    return winners


def expand(bags: Bags, weights: Array | None, mode: int, padding: int, bag_of: Array, coefs: Array | None) -> None:
    """Fill in the bag and, if asked for, the factor of each occurrence."""
    pool_kernels.expand_bags(bags.ids, bags.offsets, weights, mode, padding, bag_of, coefs)


def share(bags: Bags, mode: int, padding: int, shares: Array) -> None:
    """Fill in the factor of the rows of each bag."""
    pool_kernels.share_bags(bags.ids, bags.offsets, mode, padding, shares)


def weights_gradient(
    weight: Array, bags: Bags, weights: Array | None, grad: Array, mode: int, padding: int, out: Array
) -> None:
    """Gradient of the per-sample weights into out (n,)."""
    row_bytes = weight.shape[1] * weight.itemsize
    num_blocks, block_size = _bag_blocks(bags, row_bytes)
    arguments = (block_size, as_input(weight), bags.ids, bags.offsets, weights, mode, padding, grad)
    _read(
        pool_kernels.weights_gradient,
        num_blocks,
        *arguments,
        lines_of(weight),
        _scratch(num_blocks, padded(weight.shape[1]), np.float64),
        out,
    )
