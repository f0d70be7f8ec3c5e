"""Scores of bags, their loss, and its gradients, bag by bag: rows are read again while they lie in the cache.

Names are as in `dot` and `pool`; `hp` are the scalars of the loss; `labels` (n,) and `shares` (num_bags,), what each
bag's loss is multiplied by, are arrays of length 0 where there are none: fewer compiled versions than with None;
`least` and `largest` are the labels that are allowed; `scores` (n,) holds the scores, then the gradients with respect
to them.
"""

from math import log, nan

import numpy as np

from ..._jit import inline, kernel
from ...losses._dispatch import exp_of, has_pair, has_term, pair, term
from ._bags import SUM, pool_bag
from ._intrinsics import clear, row_address
from ._rows import distance
from ._sharing import WRONG, claim, enter, join, leave, within
from .catch_up import AHEAD_CATCHING_UP, CatchingUp, Missed, prefetch_row
from .dot import dot_row
from .pool import add_rows

CHUNK = 64  # scores whose losses are computed several at a time; they are then added one after the other, in float64
KEPT = 64  # ids of a bag whose rows are kept after they have caught up
_NEAR = 1 << 18  # bytes of a bag's rows that are still in the cache when they are read again


@inline
def _by_score(scores, ids, labels, first, last, padding, least, largest, share, hp, values):
    """Return the loss of a bag whose scores have a loss each, NaN for a label out of range; write the gradients."""
    total, fit, zero, start = 0.0, True, scores.dtype.type(0), first
    while start < last:
        count = np.uintp(min(CHUNK, last - start))
        for k in range(count):  # unsigned: an index that may be negative costs a test
            p = np.uintp(start) + k
            value, slope = term(scores[p], labels[p], hp)
            counts = ids[p] != padding
            fit &= not counts or least <= labels[p] <= largest
            values[k] = value if counts else zero
            scores[p] = slope * share if counts else zero
        for k in range(count):
            total += values[k]
        start += CHUNK
    return total if fit else nan


@inline
def _by_pair(scores, ids, first, last, padding, share, hp, values):
    """Return the loss of a bag whose first score is compared with each other one; write the gradients."""
    if first == last:
        return 0.0
    total, pull, zero, start = 0.0, 0.0, scores.dtype.type(0), first + 1
    top, counted = scores[first], ids[first] != padding
    while start < last:
        count = np.uintp(min(CHUNK, last - start))
        for k in range(count):
            p = np.uintp(start) + k
            value, slope = pair(scores[p] - top, hp)
            counts = counted and ids[p] != padding
            values[k] = value if counts else zero
            scores[p] = slope * share if counts else zero
        for k in range(count):
            total += values[k]
            pull += scores[np.uintp(start) + k]
        start += CHUNK
    scores[first] = -pull if counted else 0
    return total


@inline
def _softmax(scores, ids, labels, first, last, padding, largest, share):
    """Return the cross-entropy over the ids of a bag, NaN for a label out of range; write the gradients."""
    given, some, zero = labels.shape[0] > 0, False, scores.dtype.type(0)
    top, total, mass, short, fit = zero, 0.0, 1.0, 0.0, True
    for p in range(np.uintp(first), np.uintp(last)):
        if ids[p] != padding and (not some or scores[p] > top or scores[p] != scores[p]):
            top, some = scores[p], True
    if not some or not (given or ids[first] != padding):
        for p in range(np.uintp(first), np.uintp(last)):
            scores[p] = zero
        return 0.0
    if given:
        mass = 0.0
        for p in range(np.uintp(first), np.uintp(last)):
            if ids[p] != padding:
                fit &= 0 <= labels[p] <= largest
                mass += labels[p]
                short += labels[p] * np.float64(top - scores[p])
    else:
        short = np.float64(top - scores[first])
    for p in range(np.uintp(first), np.uintp(last)):
        scores[p] = exp_of(scores[p] - top) if ids[p] != padding else zero
    for p in range(np.uintp(first), np.uintp(last)):
        total += scores[p]
    scale = scores.dtype.type(mass * share / total)
    for p in range(np.uintp(first), np.uintp(last)):
        scores[p] = scores[p] * scale
        if given and ids[p] != padding:
            scores[p] -= labels[p] * share
    if not given:
        scores[first] -= share
    return log(total) * mass + short if fit else nan


@inline
def _bag_loss(scores, ids, labels, first, last, padding, least, largest, share, hp, values):
    """Return the loss of a bag, before it is multiplied by `share`, and write the gradients of its scores."""
    if has_term(hp):
        return _by_score(scores, ids, labels, first, last, padding, least, largest, share, hp, values)
    if has_pair(hp):
        return _by_pair(scores, ids, first, last, padding, share, hp, values)
    return _softmax(scores, ids, labels, first, last, padding, largest, share)


@inline
def _keep(kept, k, dim, member, catching_up):
    """Keep the row that has just caught up: to do it again takes several times as long as to copy it."""
    row = Missed(*CatchingUp(*catching_up).missed).rows[member]
    for c in range(dim):
        kept[member, k, c] = row[c]


@inline
def _pool(b, weight, ids, offsets, padding, lines, scratch, kept, member, catching_up, claims, scores, grad_x):
    """Write the sum of the rows of a bag, each times the gradient of its score, with the bits of `pool_rows`."""
    first, last = np.int64(offsets[b]), np.int64(offsets[b + 1])
    if scratch is None:
        far = (last - first) * weight.shape[1] * weight.itemsize > _NEAR
        ahead = np.uintp(distance(lines if far else 0))
        if not pool_bag(b, weight, ids, offsets, scores, SUM, padding, ahead, grad_x):
            claims[WRONG] = 1
        return
    total = scratch[member]
    clear(total)
    if catching_up is not None and last - first <= kept.shape[1]:
        for p in range(first, last):
            if ids[p] != padding:
                for c in range(grad_x.shape[1]):
                    total[c] += scores[p] * kept[member, p - first, c]
    else:
        add_rows(total, weight, (ids, first, last, padding), scores, lines, member, catching_up, claims)
    for c in range(grad_x.shape[1]):
        grad_x[b, c] = total[c]


@kernel
def dot_loss_rows(
    claims,
    num_blocks,
    block_size,
    weight,
    ids,
    offsets,
    x,
    padding,
    lines,
    scratch,
    catching_up,
    hp,
    labels,
    least,
    largest,
    shares,
    values,
    kept,
    scores,
    grad_x,
    losses,
):
    """Write the gradients of the scores and of x, the loss of each bag, and after these the sum of all losses.

    `scratch` (threads, dim) is for rows that are not contiguous or catch up; None for others.  `values`
    (threads, CHUNK) is scratch; `kept` (threads, KEPT, dim) for the rows of a short bag after their missed steps.
    `losses` (num_bags + 1,) is float64: its last number is added up bag after bag.
    """
    enter(claims)
    member, n, num_bags = join(claims), ids.shape[0], x.shape[0]
    ahead = distance(lines) if catching_up is None else AHEAD_CATCHING_UP
    block = claim(claims)
    while block < num_blocks:
        for b in range(block * block_size, min((block + 1) * block_size, num_bags)):
            first, last = np.int64(offsets[b]), np.int64(offsets[b + 1])
            to = row_address(x, b)
            for p in range(first, last):
                if p + ahead < n:
                    prefetch_row(weight, ids[p + ahead], lines, catching_up)
                r = within(ids[p], weight.shape[0], claims)
                if ids[p] == padding:
                    scores[p] = 0
                elif catching_up is None:
                    scores[p] = dot_row(weight, r, x, to, scratch, member, None)
                else:
                    scores[p] = dot_row(weight, r, x, to, None, member, catching_up)
                    if last - first <= kept.shape[1]:
                        _keep(kept, p - first, x.shape[1], member, catching_up)
            share = scores.dtype.type(1) if shares.shape[0] == 0 else shares[b]
            room = values[member]
            loss = _bag_loss(scores, ids, labels, first, last, padding, least, largest, share, hp, room)
            losses[b] = loss * np.float64(share)
            _pool(b, weight, ids, offsets, padding, lines, scratch, kept, member, catching_up, claims, scores, grad_x)
        block = claim(claims)
    if leave(claims):
        total = 0.0
        for b in range(num_bags):
            total += losses[b]
        losses[num_bags] = total
