"""Bring rows up to date that missed steps: what a dense optimizer would have made of them.

`lag` = (last, where, entries, ages, past, like, coefs, rows, slots): `last` (num_rows,) is the step up to
which a row is up to date; `where` = (first step of the history, newest, reach), the latter two counted from
the first; `entries` (steps, columns), `ages` (steps, columns) and `past` (steps, fields) are a `History`;
`like` is a `Gap` of the rule; `coefs` (threads, fields), `rows` (threads, padded dim) and `slots`
(threads, slots, padded dim) are room for one row each.  `deferred` = (state, hp, lag), or None for rules
whose rows miss nothing.
"""

import numpy as np

from ..._jit import inline, kernel
from ...rules._dispatch import catch_up, gap, is_guarded, is_unsettled, load, step, store
from ._intrinsics import prefetch, row_address, tuple_at
from ._sharing import claim, enter, finish, join, leave

STEP, BASE, STARTS = 0, 1, 2  # of `steps`: taken; up to which every row was up to date; how often that was so
AHEAD, AHEAD_DEFERRED = 32, 10  # rows to prefetch; with state, each takes three times as many cache lines


@inline
def prefetch_row(weight, r, lines, deferred):
    """Ask for what reading a row takes."""
    prefetch(row_address(weight, r), lines)
    if deferred is not None:
        state, _, lag = deferred
        prefetch(row_address(state, r), lines * state.shape[1])
        prefetch(row_address(lag[0], r), 1)


@inline
def catch_up_row(weight, state, r, member, lag, keep, hp):
    """Write row r as it is after the newest step to ``rows[member]``, and to ``slots[member]`` if `keep`."""
    last, where, entries, ages, _, like, coefs, rows, slots = lag
    base, newest, reach = where
    dim = weight.shape[1]
    first = np.int64(last[r]) - base
    if first < newest:
        gap(entries, first, newest, ages, reach, coefs[member], hp)
        coef = tuple_at(coefs, member, like)
        unsettled = False
        if is_guarded(coef, hp):
            for c in range(dim):
                unsettled |= is_unsettled(load(state, r, c, hp), coef, hp)
        if unsettled:
            _replay_row(weight, state, r, member, lag, hp)
            return
        for c in range(dim):
            w, s = catch_up(weight[r, c], load(state, r, c, hp), coef, hp)
            rows[member, c] = w
            if keep:
                store(slots, member, c, s, hp)
        return
    for c in range(dim):
        rows[member, c] = weight[r, c]
        if keep:
            store(slots, member, c, load(state, r, c, hp), hp)


@inline
def _replay_row(weight, state, r, member, lag, hp):
    """Take the missed steps one by one while they move the row: the series is too short for an element."""
    last, where, entries, ages, past, like, coefs, rows, slots = lag
    base, newest, reach = where
    zero, dim = rows.dtype.type(0), weight.shape[1]
    for c in range(dim):
        rows[member, c] = weight[r, c]
        store(slots, member, c, load(state, r, c, hp), hp)
    first = np.int64(last[r]) - base
    end = min(first + reach, newest)
    for t in range(first + 1, end + 1):
        then = tuple_at(past, t, hp)
        for c in range(dim):
            w, s = step(rows[member, c], zero, load(slots, member, c, hp), zero, then)
            rows[member, c] = w
            store(slots, member, c, s, hp)
    if end < newest:
        gap(entries, end, newest, ages, reach, coefs[member], hp)
        coef = tuple_at(coefs, member, like)
        for c in range(dim):
            w, s = catch_up(rows[member, c], load(slots, member, c, hp), coef, hp)
            rows[member, c] = w
            store(slots, member, c, s, hp)


@inline
def restart(steps, step):
    """Note that every row is up to date at a step: a history starts there, and none from before counts any more."""
    steps[BASE] = step
    steps[STARTS] += 1


@kernel
def flush_rows(claims, num_blocks, block_size, weight, state, steps, lag, hp):
    """Bring every row of the table up to date, in place, and note in `steps` that a history starts there."""
    if not enter(claims):
        return
    last, where, rows, slots = lag[0], lag[1], lag[7], lag[8]
    now = where[0] + where[1]
    member = join(claims)
    block = claim(claims)
    while block < num_blocks:
        for r in range(block * block_size, min((block + 1) * block_size, weight.shape[0])):
            if last[r] != now:
                catch_up_row(weight, state, np.uintp(r), member, lag, True, hp)
                for c in range(weight.shape[1]):
                    weight[r, c] = rows[member, c]
                    store(state, np.uintp(r), c, load(slots, member, c, hp), hp)
                last[r] = now
        finish(claims)
        block = claim(claims)
    if leave(claims, num_blocks):  # here, so that no interrupt can come between the rows and the note
        restart(steps, now)
