"""Sum the gradient rows of each segment.

Names used by all kernels: `order` (n,) occurrences sorted by row; `rows` (k,) unique sorted;
`offsets` (k + 1,) where each row's run starts in `order`; `scratch` (threads, ...) room for a row of arithmetic.
`grads` says where the gradient of occurrence i lies: `sources` (lookups, 3) holds the first occurrence of each
lookup, the address of its gradient and the bytes from row to row; for pooled lookups `bags` (n,) is the
gradient row of each occurrence, `coefs` (n,) its factor, `winners` (num_bags, dim) the
occurrence that won each column of a max, `by_count` that each row's sum is divided by the number of its
occurrences; None where unused.  `fetch` says what to prefetch: (table rows ahead, cache lines of one, of its
state; gradient rows ahead, lines of one).
"""

import numpy as np

from ..._jit import inline, kernel
from ._intrinsics import clear, copy, element, lane_sum, prefetch, row_address, row_at
from ._sharing import claim, enter, finish, join, leave
from ._vectors import NARROW, WIDE, add, load, multiply, narrow, save, wide
from ._vectors import fetch as fetch_lines

CHUNK = 512  # longer segments are hot: cut into chunks of this many occurrences


@inline
def dot(a, i, b, j, terms):
    """Dot product of two rows in float64; `terms` is dim zeros, rounded up to a multiple of 16."""
    for c in range(a.shape[1]):
        terms[c] = np.float64(element(a, i, c)) * np.float64(element(b, j, c))
    return lane_sum(terms)


@inline
def _grad_address(i, sources, bags):
    """Address of the gradient row of occurrence i."""
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
        if coef != 0:  # no gradient: 0 * NaN is one
            for c in range(total.shape[0]):
                total[c] += coef * grad[c]
    else:
        for c in range(total.shape[0]):
            total[c] += grad[c]


@inline
def _fetch_grad(p, order, sources, bags, fetch):
    """Prefetch the gradient row that stands `ahead` places after p in sorted order."""
    _, _, _, ahead, lines = fetch
    if p + ahead < order.shape[0]:
        prefetch(_grad_address(np.int64(order[p + ahead]), sources, bags), lines)


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
def _sum_columns(lanes, rest, c, total, order, first, last, sources, coefs, ahead):
    """Sum as many columns as `lanes` is wide, or `rest` of them, from column c on, in registers."""
    start, stride = sources[0, 1] + c * total.itemsize, sources[0, 2]
    size, ahead = np.uintp(order.shape[0]), np.uintp(ahead)
    for p in range(np.uintp(first), np.uintp(last)):  # unsigned: an index that may be negative costs a test
        if p + ahead < size:
            fetch_lines(start + np.int64(order[p + ahead]) * stride, lanes)
        part = load(total, start + np.int64(order[p]) * stride, lanes, rest)
        if coefs is not None:
            coef = coefs[order[p]]
            if coef == 0:  # no gradient: 0 * NaN is one
                continue
            part = multiply(part, coef)
        lanes = add(lanes, part)
    save(row_address(total, 0) + c * total.itemsize, lanes, rest)


@inline
def _sum_run(total, order, first, last, sources, bags, coefs, winners, fetch):
    """Sum the gradients of a run of occurrences, in the order of the batch."""
    if bags is None and winners is None and sources.shape[0] == 1:
        dim, width, ahead = total.shape[0], WIDE // total.itemsize, fetch[3]
        rest = dim % width
        for c in range(0, dim - width + 1, width):
            _sum_columns(wide(total), None, c, total, order, first, last, sources, coefs, ahead)
        if rest > NARROW // total.itemsize:
            _sum_columns(wide(total), rest, dim - rest, total, order, first, last, sources, coefs, ahead)
        elif rest:
            _sum_columns(narrow(total), rest, dim - rest, total, order, first, last, sources, coefs, ahead)
        return
    clear(total)
    _add_run(total, order, first, last, sources, bags, coefs, winners, fetch)


@inline
def sum_segment(total, s, order, offsets, grads, hot, fetch):
    """Sum the gradients of segment s; return the address of the sum.

    That is `total`, or the gradient row itself where it is the only one.
    """
    sources, bags, coefs, winners, by_count = grads
    hot_segments, hot_offsets, partials = hot
    first, last = np.int64(offsets[s]), np.int64(offsets[s + 1])
    if last - first == 1 and coefs is None and winners is None:
        _fetch_grad(first, order, sources, bags, fetch)
        return _grad_address(np.int64(order[first]), sources, bags)
    if last - first <= CHUNK:
        _sum_run(total, order, first, last, sources, bags, coefs, winners, fetch)
    else:  # hot: its partial sums are ready
        clear(total)
        h = np.searchsorted(hot_segments, s)
        for chunk in range(hot_offsets[h], hot_offsets[h + 1]):
            for c in range(total.shape[0]):
                total[c] += partials[chunk, c]
    if by_count is not None:
        count = total.dtype.type(last - first)
        for c in range(total.shape[0]):
            total[c] /= count
    return row_address(total, 0)


@kernel
def sum_hot(claims, num_blocks, order, offsets, grads, hot, fetch):
    """Sum each chunk of each hot segment into its row of `partials`; one chunk a block.

    Chunks are counted from the start of their segment, so that a row's sum depends on its own
    occurrences alone.
    """
    if not enter(claims):
        return
    sources, bags, coefs, winners, _ = grads
    hot_segments, hot_offsets, partials = hot
    block = claim(claims)
    while block < num_blocks:
        h = np.searchsorted(hot_offsets, block, side="right") - 1
        s = hot_segments[h]
        first = np.int64(offsets[s]) + (block - hot_offsets[h]) * CHUNK
        last = min(first + CHUNK, np.int64(offsets[s + 1]))
        total = partials[block]
        _sum_run(total, order, first, last, sources, bags, coefs, winners, fetch)
        finish(claims)
        block = claim(claims)
    leave(claims, num_blocks)


@kernel
def segment_sum(claims, num_blocks, block_size, order, offsets, grads, hot, fetch, values):
    """Write the gradient sum of every segment to its row of `values` (k, dim)."""
    if not enter(claims):
        return
    row_bytes = values.shape[1] * values.itemsize
    block = claim(claims)
    while block < num_blocks:
        for s in range(block * block_size, min((block + 1) * block_size, values.shape[0])):
            total = values[s]
            found = sum_segment(total, s, order, offsets, grads, hot, fetch)
            if found != row_address(total, 0):
                copy(row_address(total, 0), found, row_bytes)
        finish(claims)
        block = claim(claims)
    leave(claims, num_blocks)


@kernel
def row_squares(claims, num_blocks, block_size, values, scratch, sums):
    """Set ``sums[r]`` to the sum of squares of row r, in float64."""
    if not enter(claims):
        return
    terms = scratch[join(claims)]
    block = claim(claims)
    while block < num_blocks:
        for r in range(block * block_size, min((block + 1) * block_size, values.shape[0])):
            sums[r] = dot(values, r, values, r, terms)
        finish(claims)
        block = claim(claims)
    leave(claims, num_blocks)
