"""Sort the ids of a batch into segments, and sum the gradient rows of each segment.

Names used by all kernels: `order` (n,) occurrences sorted by row; `rows` (k,) unique sorted;
`offsets` (k + 1,) where each row's run starts in `order`; `scratch` (threads, ...) room for a row of arithmetic.
`grads` says where the gradient of occurrence i lies: `sources` (lookups, 2) holds the first
occurrence and the address of each lookup's gradient; for pooled lookups `bags` (n,) is the
gradient row of each occurrence, `coefs` (n,) its factor, `winners` (num_bags, dim) the
occurrence that won each column of a max, `by_count` that each row's sum is divided by the number of its
occurrences; None where unused.  `fetch` says what to prefetch: (table rows ahead, cache lines of one, of its
state; gradient rows ahead, lines of one).
"""

import numpy as np

from ..._jit import inline, kernel
from ._intrinsics import claim, clear, copy, element, finish, join, lane_sum, prefetch, row_address, row_at

CHUNK = 512  # longer segments are hot: cut into chunks of this many occurrences


@kernel
def first_outside(ids, num_rows):
    """Return the first position whose id is not in [0, num_rows), or -1."""
    bad = False
    for i in range(ids.shape[0]):  # no early exit, so that it vectorises
        bad |= np.uint64(ids[i]) >= np.uint64(num_rows)
    if bad:
        for i in range(ids.shape[0]):
            if np.uint64(ids[i]) >= np.uint64(num_rows):
                return i
    return -1


@kernel
def pack(ids, start, shift, keys, counts, width):
    """Put each id above its position, so that sorting the keys sorts the ids stably.

    ``counts[d, v]`` counts how often digit d of an id, `width` bits wide, has the value v.
    """
    mask = np.uint64((1 << width) - 1)
    for i in range(ids.shape[0]):
        position, key = np.uint64(start + i), np.uint64(ids[i])
        keys[position] = key << np.uint64(shift) | position
        for digit in range(counts.shape[0]):
            counts[digit, key >> np.uint64(digit * width) & mask] += 1


@kernel
def sort_keys(keys, spare, counts, shift, width):
    """Radix-sort by the digits counted; return whether the result lies in `spare`."""
    n = keys.shape[0]
    if counts.shape[0] == 0:
        for i in range(1, n):
            key, j = keys[i], i
            while j > 0 and keys[j - 1] > key:
                keys[j] = keys[j - 1]
                j -= 1
            keys[j] = key
        return False
    mask = np.uint64((1 << width) - 1)
    swapped = False
    for digit in range(counts.shape[0]):
        low = np.uint64(shift + digit * width)
        total = 0
        for bucket in range(1 << width):
            counts[digit, bucket], total = total, total + counts[digit, bucket]
        for i in range(n):
            key = keys[i]
            bucket = key >> low & mask
            place = counts[digit, bucket]
            counts[digit, bucket] = place + 1
            spare[np.uintp(place)] = key
        keys, spare, swapped = spare, keys, not swapped
    return swapped


@kernel
def find_segments(keys, shift, rows, order, offsets):
    """Split sorted keys into `order`, `rows` and `offsets`; return (k, longest segment).

    `rows` may share the memory of `keys`: it is written behind the reading position.
    """
    n = keys.shape[0]
    mask = np.uint64((1 << shift) - 1)
    k, longest, start = 0, 0, 0
    previous = np.uint64(0)
    for i in range(n):
        row = keys[i] >> np.uint64(shift)
        order[i] = keys[i] & mask
        if i == 0 or row != previous:
            longest = max(longest, i - start)
            rows[k], offsets[k] = row, i
            previous, start = row, i
            k += 1
    offsets[k] = n
    return k, max(longest, n - start)


@inline
def dot(a, i, b, j, terms):
    """Dot product of two rows in float64; `terms` is dim zeros, rounded up to a multiple of 16."""
    for c in range(a.shape[1]):
        terms[c] = np.float64(element(a, i, c)) * np.float64(element(b, j, c))
    return lane_sum(terms)


@inline
def _grad_address(i, sources, bags, row_bytes):
    """Address of the gradient row of occurrence i."""
    j = 0
    while j + 1 < sources.shape[0] and i >= sources[j + 1, 0]:
        j += 1
    row = i - sources[j, 0] if bags is None else np.int64(bags[i])
    return sources[j, 1] + row * row_bytes


@inline
def _add(total, grad, i, bag, coefs, winners):
    if winners is not None:
        for c in range(total.shape[0]):
            if winners[bag, c] == i:
                total[c] += grad[c]
    elif coefs is not None:
        coef = coefs[i]
        for c in range(total.shape[0]):
            total[c] += coef * grad[c]
    else:
        for c in range(total.shape[0]):
            total[c] += grad[c]


@inline
def _fetch_grad(p, order, sources, bags, row_bytes, fetch):
    """Prefetch the gradient row that stands `ahead` places after p in sorted order."""
    _, _, _, ahead, lines = fetch
    if p + ahead < order.shape[0]:
        prefetch(_grad_address(np.int64(order[p + ahead]), sources, bags, row_bytes), lines)


@inline
def _add_run(total, order, first, last, sources, bags, coefs, winners, fetch):
    """Add the gradients of a run of occurrences, in the order of the batch."""
    dim, row_bytes = total.shape[0], total.shape[0] * total.itemsize
    for p in range(first, last):
        _fetch_grad(p, order, sources, bags, row_bytes, fetch)
        i = np.int64(order[p])
        bag = 0 if winners is None else np.int64(bags[i])
        grad = row_at(_grad_address(i, sources, bags, row_bytes), dim, total)
        _add(total, grad, i, bag, coefs, winners)


@inline
def sum_segment(
    total,
    s,
    order,
    offsets,
    sources,
    bags,
    coefs,
    winners,
    by_count,
    hot_segments,
    hot_offsets,
    partials,
    fetch,
):
    """Sum the gradients of segment s; return the address of the sum.

    That is `total`, or the gradient row itself where it is the only one.
    """
    first, last = np.int64(offsets[s]), np.int64(offsets[s + 1])
    if last - first == 1 and coefs is None and winners is None:
        row_bytes = total.shape[0] * total.itemsize
        _fetch_grad(first, order, sources, bags, row_bytes, fetch)
        return _grad_address(np.int64(order[first]), sources, bags, row_bytes)
    clear(total)
    if last - first <= CHUNK:
        _add_run(total, order, first, last, sources, bags, coefs, winners, fetch)
    else:  # hot: its partial sums are ready
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
    sources, bags, coefs, winners, _ = grads
    hot_segments, hot_offsets, partials = hot
    block = claim(claims)
    while block < num_blocks:
        h = np.searchsorted(hot_offsets, block, side="right") - 1
        s = hot_segments[h]
        first = np.int64(offsets[s]) + (block - hot_offsets[h]) * CHUNK
        last = min(first + CHUNK, np.int64(offsets[s + 1]))
        total = partials[block]
        clear(total)
        _add_run(total, order, first, last, sources, bags, coefs, winners, fetch)
        finish(claims)
        block = claim(claims)


@kernel
def segment_sum(claims, num_blocks, block_size, order, offsets, grads, hot, fetch, values):
    """Write the gradient sum of every segment to its row of `values` (k, dim)."""
    sources, bags, coefs, winners, by_count = grads
    hot_segments, hot_offsets, partials = hot
    row_bytes = values.shape[1] * values.itemsize
    block = claim(claims)
    while block < num_blocks:
        for s in range(block * block_size, min((block + 1) * block_size, values.shape[0])):
            total = values[s]
            found = sum_segment(
                total,
                s,
                order,
                offsets,
                sources,
                bags,
                coefs,
                winners,
                by_count,
                hot_segments,
                hot_offsets,
                partials,
                fetch,
            )
            if found != row_address(total, 0):
                copy(row_address(total, 0), found, row_bytes)
        finish(claims)
        block = claim(claims)


@kernel
def row_squares(claims, num_blocks, block_size, values, scratch, sums):
    """Set ``sums[r]`` to the sum of squares of row r, in float64."""
    terms = scratch[join(claims)]
    block = claim(claims)
    while block < num_blocks:
        for r in range(block * block_size, min((block + 1) * block_size, values.shape[0])):
            sums[r] = dot(values, r, values, r, terms)
        finish(claims)
        block = claim(claims)
