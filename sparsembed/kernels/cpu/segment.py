"""Sum the gradient rows of each segment.

`scratch` (threads, ...) is scratch space for one row of each thread.  Kernels get the named tuples below as plain
tuples, whose type Numba's dispatcher finds 1.5 us faster; see `catch_up.Missed`.
"""

from typing import Any, NamedTuple

import numpy as np

from ..._jit import inline, kernel
from ._elements import load
from ._intrinsics import clear, copy, lane_sum, last_at_most, prefetch, row_address, row_at
from ._sharing import claim, enter, join, leave
from ._vectors import NARROW, WIDE, add, fetch_vector, load_vector, multiply, narrow, save_vector, wide

CHUNK = 512  # longer segments are hot: cut into chunks of this many occurrences


class Segments(NamedTuple):
    """The sorted ids of a batch: one segment of equal ids for each row."""

    rows: Any  # (k,) unique ids, increasing
    order: Any  # (n,) occurrences, sorted by id
    offsets: Any  # (k + 1,) where each segment starts in `order`


class Gradients(NamedTuple):
    """Where the gradient of each occurrence is stored; fields that are not used are None."""

    sources: Any  # (lookups, 3) first occurrence of the lookup; address and row stride of its gradient
    bags: Any  # (n,) the gradient row of each occurrence
    coefs: Any  # (n,) the factor of each occurrence
    winners: Any  # (num_bags, dim) the occurrence that won each column of a max
    by_count: Any  # PRESENT: each row's sum is divided by the number of its occurrences


class Hot(NamedTuple):
    """The segments longer than CHUNK, and the sums of their chunks."""

    segments: Any  # (hot,) increasing
    offsets: Any  # (hot + 1,) where the chunks of each start in `partials`
    partials: Any  # (chunks, dim)


class Fetch(NamedTuple):
    """Prefetch distances in rows, and cache lines per row."""

    rows_ahead: Any  # distance in rows of the table
    lines: Any  # cache lines of a row of the table
    state_lines: Any  # cache lines of the state of a row
    grads_ahead: Any  # distance in rows of gradients
    grad_lines: Any  # cache lines of a row of gradients


@inline
def dot(a, i, b, j, terms):
    """Return the dot product of two rows in float64; `terms`: zeros, as many as dim rounded up to a multiple of 16."""
    for c in range(a.shape[1]):
        terms[c] = np.float64(load(a, i, c)) * np.float64(load(b, j, c))
    return lane_sum(terms)


@inline
def _grad_address(i, sources, bags):
    """Return the address of the gradient row of occurrence i."""
    j = 0
    while j + 1 < sources.shape[0] and i >= sources[j + 1, 0]:
        j += 1
    row = i - sources[j, 0] if bags is None else np.int64(bags[i])
    return sources[j, 1] + row * sources[j, 2]


@inline
def _add(total, grad, i, bag, coefs, winners):
    if winners is not None:
        for c in range(total.shape[0]):
            if winners[bag, c] == i:
                total[c] += grad[c]
    elif coefs is not None:
        coef = coefs[i]
        if coef != 0:  # skip a factor of 0, since 0 * NaN is NaN
            for c in range(total.shape[0]):
                total[c] += coef * grad[c]
    else:
        for c in range(total.shape[0]):
            total[c] += grad[c]


@inline
def _fetch_grad(p, order, sources, bags, fetch):
    """Prefetch the gradient row of the occurrence `grads_ahead` places after p in sorted order."""
    ahead = fetch.grads_ahead
    if p + ahead < order.shape[0]:
        prefetch(_grad_address(np.int64(order[p + ahead]), sources, bags), fetch.grad_lines)


@inline
def _add_run(total, order, first, last, sources, bags, coefs, winners, fetch):
    """Add the gradients of a run of occurrences, in the order of the batch."""
    for p in range(first, last):
        _fetch_grad(p, order, sources, bags, fetch)
        i = np.int64(order[p])
        bag = 0 if winners is None else np.int64(bags[i])
        grad = row_at(_grad_address(i, sources, bags), total.shape[0], total)
        _add(total, grad, i, bag, coefs, winners)


@inline
def _grad_row(i, bags):
    return np.int64(i) if bags is None else np.int64(bags[i])


@inline
def _sum_columns(lanes, rest, c, total, order, first, last, sources, bags, coefs, ahead):
    """Sum the columns from c on, as many as `lanes` is wide or only `rest`, in registers."""
    start, stride = sources[0, 1] + c * total.itemsize, sources[0, 2]
    size, ahead = np.uintp(order.shape[0]), np.uintp(ahead)
    for p in range(np.uintp(first), np.uintp(last)):  # unsigned: an index that may be negative costs a test
        if p + ahead < size:
            fetch_vector(start + _grad_row(order[p + ahead], bags) * stride, lanes)
        part = load_vector(total, start + _grad_row(order[p], bags) * stride, lanes, rest)
        if coefs is not None:
            coef = coefs[order[p]]
            if coef == 0:  # skip a factor of 0, since 0 * NaN is NaN
                continue
            part = multiply(part, coef)
        lanes = add(lanes, part)
    save_vector(row_address(total, 0) + c * total.itemsize, lanes, rest)


@inline
def _sum_run(total, order, first, last, sources, bags, coefs, winners, fetch):
    """Sum the gradients of a run of occurrences, in the order of the batch."""
    if winners is None and sources.shape[0] == 1:
        dim, width, ahead = total.shape[0], WIDE // total.itemsize, fetch.grads_ahead
        rest = dim % width
        for c in range(0, dim - width + 1, width):
            _sum_columns(wide(total), None, c, total, order, first, last, sources, bags, coefs, ahead)
        if rest > NARROW // total.itemsize:
            _sum_columns(wide(total), rest, dim - rest, total, order, first, last, sources, bags, coefs, ahead)
        elif rest:
            _sum_columns(narrow(total), rest, dim - rest, total, order, first, last, sources, bags, coefs, ahead)
        return
    clear(total)
    _add_run(total, order, first, last, sources, bags, coefs, winners, fetch)


@inline
def sum_segment(total, s, order, offsets, grads, hot, fetch):
    """Sum the gradients of segment s; return the address of the sum.

    The address is of `total`, or of the gradient row itself if the segment has only one.
    """
    sources, bags, coefs, winners, by_count = Gradients(*grads)
    hot, fetch = Hot(*hot), Fetch(*fetch)
    first, last = np.int64(offsets[s]), np.int64(offsets[s + 1])
    if last - first == 1 and coefs is None and winners is None:
        _fetch_grad(first, order, sources, bags, fetch)
        return _grad_address(np.int64(order[first]), sources, bags)
    if last - first <= CHUNK:
        _sum_run(total, order, first, last, sources, bags, coefs, winners, fetch)
    else:  # hot: `sum_hot` has computed the partial sums
        clear(total)
        h = last_at_most(hot.segments, s)
        for chunk in range(hot.offsets[h], hot.offsets[h + 1]):
            for c in range(total.shape[0]):
                total[c] += hot.partials[chunk, c]
    if by_count is not None:
        count = total.dtype.type(last - first)
        for c in range(total.shape[0]):
            total[c] /= count
    return row_address(total, 0)


@kernel
def sum_hot(claims, num_blocks, order, offsets, grads, hot, fetch):
    """Sum each chunk of each hot segment into its row of `partials`; one chunk a block.

    Chunks start at the start of a segment, so the sum of a row depends only on the occurrences of that row.
    """
    enter(claims)
    sources, bags, coefs, winners, _ = Gradients(*grads)
    hot, fetch = Hot(*hot), Fetch(*fetch)
    block = claim(claims)
    while block < num_blocks:
        h = last_at_most(hot.offsets, block)
        s = hot.segments[h]
        first = np.int64(offsets[s]) + (block - hot.offsets[h]) * CHUNK
        last = min(first + CHUNK, np.int64(offsets[s + 1]))
        total = hot.partials[block]
        _sum_run(total, order, first, last, sources, bags, coefs, winners, fetch)
        block = claim(claims)
    leave(claims)


@kernel
def segment_sum(claims, num_blocks, block_size, order, offsets, grads, hot, fetch, values):
    """Write the gradient sum of every segment to its row of `values` (k, dim)."""
    enter(claims)
    row_bytes = values.shape[1] * values.itemsize
    block = claim(claims)
    while block < num_blocks:
        for s in range(block * block_size, min((block + 1) * block_size, values.shape[0])):
            total = values[s]
            found = sum_segment(total, s, order, offsets, grads, hot, fetch)
            if found != row_address(total, 0):
                copy(row_address(total, 0), found, row_bytes)
        block = claim(claims)
    leave(claims)


@kernel
def row_squares(claims, num_blocks, block_size, values, scratch, sums):
    """Set ``sums[r]`` to the sum of squares of row r, in float64."""
    enter(claims)
    terms = scratch[join(claims)]
    block = claim(claims)
    while block < num_blocks:
        for r in range(block * block_size, min((block + 1) * block_size, values.shape[0])):
            sums[r] = dot(values, r, values, r, terms)
        block = claim(claims)
    leave(claims)
