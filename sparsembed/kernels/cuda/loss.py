"""The loss of bags, and the gradients of their scores, between `dot.dot_rows` and `pool.pool_rows`.

Formulas and names are as in the CPU's file; `marked` is None where there are no labels, `shares` likewise.
"""

from math import inf, log, nan

import numpy as np

from ...losses._dispatch import exp_of, has_pair, has_term, pair, term
from ._instructions import cast, inline, shuffle_xor, sync_warp
from ._sharing import NONE, group_of, group_sum, groups, mask_of, member_of


@inline
def _largest(value, shift):
    """Return the largest value of the group; NaN wins."""
    mask, distance = mask_of(shift), (1 << shift) >> 1
    while distance > 0:
        other = shuffle_xor(mask, value, distance)
        if other > value or other != other:
            value = other
        distance >>= 1
    return value


@inline
def _by_score(scores, ids, labels, first, last, padding, least, largest, share, hp, zero, shift):
    total, p = 0.0, first + member_of(shift)
    while p < last:
        value, slope = term(scores[p], labels[p], hp)
        gradient = cast(slope, zero) * share
        if ids[p] == padding:
            value, gradient = cast(0, zero), zero
        elif not (least <= labels[p] <= largest):
            value = cast(nan, zero)
        total += np.float64(value)
        scores[p] = gradient
        p += 1 << shift
    return group_sum(total, shift)


@inline
def _by_pair(scores, ids, first, last, padding, share, hp, zero, shift):
    if first == last:
        return 0.0
    counted, top, total, pull, p = ids[first] != padding, scores[first], 0.0, 0.0, first + 1 + member_of(shift)
    while p < last:
        value, slope = pair(scores[p] - top, hp)
        gradient = cast(slope, zero) * share
        if not counted or ids[p] == padding:
            value, gradient = cast(0, zero), zero
        total += np.float64(value)
        pull += np.float64(gradient)
        scores[p] = gradient
        p += 1 << shift
    pull = group_sum(pull, shift)
    sync_warp(mask_of(shift))  # all have read the first score
    if member_of(shift) == 0:
        scores[first] = cast(-pull, zero) if counted else zero
    return group_sum(total, shift)


@inline
def _softmax(scores, ids, labels, marked, first, last, padding, largest, share, zero, shift):
    member, apart = member_of(shift), 1 << shift
    top, p = cast(-inf, zero), first + member
    while p < last:
        if ids[p] != padding and (scores[p] > top or scores[p] != scores[p]):
            top = scores[p]
        p += apart
    top = _largest(top, shift)
    none = top == -inf  # nothing but padding
    if marked is None and not none:
        none = ids[first] == padding
    total, mass, short, p = 0.0, 0.0, 0.0, first + member
    while p < last:
        e = zero
        if not none and ids[p] != padding:
            if marked is not None:
                mass += np.float64(labels[p] if 0 <= labels[p] <= largest else nan)
                short += np.float64(labels[p]) * np.float64(top - scores[p])
            elif p == first:
                mass += np.float64(1)
                short += np.float64(top - scores[p])
            e = exp_of(scores[p] - top)
        total += np.float64(e)
        scores[p] = e
        p += apart
    total, mass, short = group_sum(total, shift), group_sum(mass, shift), group_sum(short, shift)
    if none:
        return 0.0
    scale, p = cast(mass * np.float64(share) / total, zero), first + member
    while p < last:
        gradient = scores[p] * scale
        if marked is None:
            if p == first:
                gradient = gradient - share
        elif ids[p] != padding:
            gradient = gradient - labels[p] * share
        scores[p] = gradient
        p += apart
    return log(total) * mass + short


def loss_bags(
    ids, offsets, num_bags, labels, marked, shares, padding, least, largest, hp, scores, losses, zero, shift, status
):
    """Replace scores by the gradients of the loss, and write the loss of each bag to `losses`, in float64."""
    if status[0] != NONE:
        return
    b = group_of(shift)
    while b < num_bags:
        first, last = np.int64(offsets[b]), np.int64(offsets[b + 1])
        share = cast(1, zero) if shares is None else shares[b]
        if has_term(hp):
            loss = _by_score(scores, ids, labels, first, last, padding, least, largest, share, hp, zero, shift)
        elif has_pair(hp):
            loss = _by_pair(scores, ids, first, last, padding, share, hp, zero, shift)
        else:
            loss = _softmax(scores, ids, labels, marked, first, last, padding, largest, share, zero, shift)
        if member_of(shift) == 0:
            losses[b] = loss * np.float64(share)
        b += groups(shift)


def sum_losses(losses, n, each, count, out, zero, status):
    """``out[g]``: the sum of the losses from ``g * each`` on, by warp g, of `count` warps."""
    if status[0] != NONE:
        return
    g, total = group_of(5), 0.0
    i, end = g * each + member_of(5), min((g + 1) * each, n)
    while i < end:
        total += losses[i]
        i += 32
    total = group_sum(total, 5)
    if member_of(5) == 0 and g < count:
        out[g] = cast(total, zero)
