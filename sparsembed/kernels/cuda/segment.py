"""Sum the gradient rows of each segment, in an order that depends on the segment alone.

Names used by all kernels: `order` (n,) occurrences sorted by row; `rows` (k,) unique sorted, k being ``found[0]``;
`offsets` (k + 1,) where each row's run starts in `order`; `grads` are `Gradients`.  An occurrence whose factor is 0
adds nothing, whatever its gradient is.  `by_count` PRESENT: each row's sum is divided by the number of its occurrences.

A run shorter than SHORT is summed by one group of lanes, one occurrence after the other, as on the CPU.  A longer run
is summed by a block: SLICES groups sum one slice of the run each, and the sums are added in order.  A run longer than
CHUNK is cut into chunks; a block sums each chunk into a row of `partials`, and these rows are then summed like a run.
"""

from typing import Any, NamedTuple

import numpy as np

from ._instructions import (
    add,
    block,
    blocks,
    cast,
    divide,
    inline,
    lanewise,
    load,
    load_once,
    multiply,
    save,
    shared,
    sync_block,
    thread,
)
from ._sharing import NONE, group_of, groups, member_of

SHORT, CHUNK, SLICES = 32, 1024, 8
_slices = shared(SLICES * 32, "slices")


class Gradients(NamedTuple):
    """The arrays that hold the gradient of each occurrence; an array that is not used is None."""

    grad: Any  # (., dim)
    bags: Any  # (n,) the gradient row of each occurrence
    coefs: Any  # (n,) the factor of each occurrence
    winners: Any  # (num_bags, dim) the occurrence that won each column of a max


class Segment(NamedTuple):
    """A run of equal ids: places in `order`."""

    order: Any
    start: Any
    end: Any


@inline
def _if_won(value, winner, i, zero):
    return value if winner == i else zero


_if_won_lanes = lanewise(_if_won, 2)


@inline
def _one(p, order, grad, bags, coefs, winners, dim, c, zero):
    """Return the gradient of one occurrence; arrays are separate arguments, so that branches on None compile away."""
    i = np.int64(p) if order is None else np.int64(order[p])
    row = i if bags is None else np.int64(bags[i])
    part = load_once(grad, row * dim + c, zero)
    if coefs is not None:  # a factor of 0 means no gradient, but 0 times NaN is NaN
        part = multiply(part, coefs[i]) if coefs[i] != 0 else zero
    if winners is not None:
        part = _if_won_lanes(part, load(winners, row * dim + c, zero), i, zero[0])
    return part


@inline
def _part(p, order, grads, dim, c, zero):
    return _one(p, order, grads.grad, grads.bags, grads.coefs, grads.winners, dim, c, zero)


@inline
def _add_run(zero, order, start, end, grads, dim, c):
    """Return the sum of a run of occurrences from column c on, in the order of the batch."""
    total = zero
    for p in range(start, end):
        total = add(total, _part(p, order, grads, dim, c, zero))
    return total


@inline
def sum_run(zero, order, start, end, grads, dim, c):
    """Return the sum of a short run; a single occurrence is returned as it is."""
    coefs, winners = grads.coefs, grads.winners
    if c >= dim:
        return zero
    if coefs is None and winners is None and end - start == 1:
        return _part(start, order, grads, dim, c, zero)
    return _add_run(zero, order, start, end, grads, dim, c)


@inline
def sum_by_block(zero, order, start, end, grads, dim, c, shift):
    """Return the sum of a long run in the first group; all threads of the block take part."""
    room, group = _slices(zero), thread() >> shift
    place = member_of(shift) * len(zero)
    size = (end - start + SLICES - 1) // SLICES
    if group < SLICES:
        total = zero
        if c < dim:
            begin = start + group * size
            total = _add_run(zero, order, begin, min(begin + size, end), grads, dim, c)
        save(room, ((group << shift) * len(zero)) + place, total)
    sync_block()
    total = zero
    if group == 0:
        for each in range(SLICES):
            total = add(total, load(room, ((each << shift) * len(zero)) + place, zero))
    sync_block()  # so that the shared memory can be used again
    return total


@inline
def averaged(total, count, by_count, zero):
    """Return a sum, divided by the number of its occurrences if `by_count` asks for it."""
    return total if by_count is None else divide(total, cast(count, zero[0]))


def sum_hot(order, chunks, found, grad, bags, coefs, winners, dim, partials, zero, shift, status):
    """Sum each chunk, one a block, into its row of `partials`."""
    if status[0] != NONE:
        return
    chunk = np.int64(block())
    while chunk < found[2]:
        start, end = np.int64(chunks[2 * chunk]), np.int64(chunks[2 * chunk + 1])
        base = np.int64(0)
        while base < dim:
            c = base + member_of(shift) * len(zero)
            total = sum_by_block(zero, order, start, end, Gradients(grad, bags, coefs, winners), dim, c, shift)
            if thread() >> shift == 0 and c < dim:
                save(partials, chunk * dim + c, total)
            base += len(zero) << shift
        chunk += blocks()


@inline
def sum_hot_segment(order, first, start, end, grads, partials, dim, c, zero, shift):
    """Return the sum of a hot segment, by a block; from the sums of its chunks if it has been cut."""
    if first >= 0:
        number = (end - start + CHUNK - 1) // CHUNK
        whole = Gradients(partials, None, None, None)
        return sum_by_block(zero, None, first, first + number, whole, dim, c, shift)
    return sum_by_block(zero, order, start, end, grads, dim, c, shift)


def segment_sum(order, offsets, found, grad, bags, coefs, winners, by_count, dim, values, zero, shift, status):
    """Write the gradient sum of every short segment to its row of `values` (k, dim)."""
    if status[0] != NONE:
        return
    s = group_of(shift)
    while s < found[0]:
        start, end = np.int64(offsets[s]), np.int64(offsets[s + 1])
        c = member_of(shift) * len(zero)
        while c < dim and end - start < SHORT:
            total = sum_run(zero, order, start, end, Gradients(grad, bags, coefs, winners), dim, c)
            save(values, s * dim + c, averaged(total, end - start, by_count, zero))
            c += len(zero) << shift
        s += groups(shift)


def segment_sum_hot(
    order,
    offsets,
    found,
    hot,
    hot_partials,
    partials,
    grad,
    bags,
    coefs,
    winners,
    by_count,
    dim,
    values,
    zero,
    shift,
    status,
):
    """Write the gradient sum of every hot segment, one a block, to its row of `values`."""
    if status[0] != NONE:
        return
    h = np.int64(block())
    while h < found[1]:
        s, first = np.int64(hot[h]), np.int64(hot_partials[h])
        start, end = np.int64(offsets[s]), np.int64(offsets[s + 1])
        base = np.int64(0)
        while base < dim:
            c = base + member_of(shift) * len(zero)
            grads = Gradients(grad, bags, coefs, winners)
            total = sum_hot_segment(order, first, start, end, grads, partials, dim, c, zero, shift)
            if thread() >> shift == 0 and c < dim:
                save(values, s * dim + c, averaged(total, end - start, by_count, zero))
            base += len(zero) << shift
        h += blocks()
