"""Apply missed steps to rows, so that rows equal the rows of a dense optimizer."""

from typing import Any, NamedTuple

import numpy as np

from ..._jit import inline, kernel
from ...rules._dispatch import catch_up, gap, is_guarded, is_unsettled, step
from ._elements import load, load_slots, save, save_slots
from ._intrinsics import prefetch, row_address, tuple_at
from ._sharing import claim, enter, join, leave

STEP, BASE, STARTS = 0, 1, 2  # indices into `steps`: newest step; start of the history; number of histories
AHEAD, AHEAD_CATCHING_UP = 32, 10  # prefetch distance in rows; a row with state takes three times as many cache lines


class Missed(NamedTuple):
    """The history of missed steps, and scratch space to apply them.

    Kernels get a plain tuple, or None for rules whose rows miss no steps: Numba's dispatcher takes 1.5 us longer to
    find the type of a named tuple (a call with 32 ids takes 50 us).
    """

    last: Any  # (num_rows,) the last step that each row has taken
    base: Any  # the step at which the history starts
    newest: Any  # the newest step, counted from `base`
    reach: Any  # steps without a gradient that still move a row
    entries: Any  # (steps, columns), as in `History`
    ages: Any  # (ages, powers), as in `History`
    past: Any  # (steps, fields), as in `History`
    by_step: Any  # `History.by_step`
    like: Any  # a `Gap` of the rule
    coefs: Any  # scratch (threads, fields) for a `Gap`
    rows: Any  # scratch (threads, padded dim) for a row
    slots: Any  # scratch (threads, slots, padded dim) for the slots of a row


class CatchingUp(NamedTuple):
    """Inputs of kernels that read rows which catch up.  Kernels get a plain tuple, or None if rows miss no steps."""

    state: Any  # (num_rows, slots, dim)
    hp: Any
    missed: Any  # `Missed`


@inline
def prefetch_row(weight, r, lines, catching_up):
    """Prefetch a row, and its state and last step if rows catch up."""
    prefetch(row_address(weight, r), lines)
    if catching_up is not None:
        table = CatchingUp(*catching_up)
        prefetch(row_address(table.state, r), lines * table.state.shape[1])
        prefetch(row_address(Missed(*table.missed).last, r), 1)


@inline
def catch_up_row(weight, state, r, member, missed, keep, hp):
    """Write row r after the newest step to ``rows[member]``; if `keep`, also the slots to ``slots[member]``."""
    missed = Missed(*missed)
    rows, slots, newest, dim = missed.rows, missed.slots, missed.newest, weight.shape[1]
    first = np.int64(missed.last[r]) - missed.base
    if first < newest:
        gap(missed.entries, first, newest, missed.ages, missed.reach, missed.coefs[member], hp)
        coef = tuple_at(missed.coefs, member, missed.like)
        unsettled = False
        if is_guarded(coef, hp):
            for c in range(dim):
                unsettled |= is_unsettled(load_slots(state, r, c, hp), coef, hp)
        if unsettled:
            _replay_row(weight, state, r, member, missed, hp)
            return
        for c in range(dim):
            w, s = catch_up(load(weight, r, c), load_slots(state, r, c, hp), coef, hp)
            rows[member, c] = w
            if keep:
                save_slots(slots, member, c, s, hp)
        return
    for c in range(dim):
        rows[member, c] = load(weight, r, c)
        if keep:
            save_slots(slots, member, c, load_slots(state, r, c, hp), hp)


@inline
def _replay_row(weight, state, r, member, missed, hp):
    """Take the missed steps one by one, while they still move the row, where `catch_up` is not exact enough."""
    rows, slots, newest, reach = missed.rows, missed.slots, missed.newest, missed.reach
    zero, dim = rows.dtype.type(0), weight.shape[1]
    for c in range(dim):
        rows[member, c] = load(weight, r, c)
        save_slots(slots, member, c, load_slots(state, r, c, hp), hp)
    first = np.int64(missed.last[r]) - missed.base
    end = min(first + reach, newest)
    for t in range(first + 1, end + 1):
        then = tuple_at(missed.past, t, hp)
        for c in range(dim):
            w, s = step(rows[member, c], zero, load_slots(slots, member, c, hp), zero, then)
            rows[member, c] = w
            save_slots(slots, member, c, s, hp)
    if end < newest:
        gap(missed.entries, end, newest, missed.ages, reach, missed.coefs[member], hp)
        coef = tuple_at(missed.coefs, member, missed.like)
        for c in range(dim):
            w, s = catch_up(rows[member, c], load_slots(slots, member, c, hp), coef, hp)
            rows[member, c] = w
            save_slots(slots, member, c, s, hp)


@inline
def restart(steps, step):
    """Note in `steps` that every row has taken `step`: a new history starts there, and the old one is invalid."""
    steps[BASE] = step
    steps[STARTS] += 1


@kernel
def flush_rows(claims, num_blocks, block_size, weight, state, steps, missed, hp):
    """Apply the missed steps to every row, in place, and note in `steps` that a new history starts."""
    enter(claims)
    missed = Missed(*missed)
    last, rows, slots, now = missed.last, missed.rows, missed.slots, missed.base + missed.newest
    member = join(claims)
    block = claim(claims)
    while block < num_blocks:
        for r in range(block * block_size, min((block + 1) * block_size, weight.shape[0])):
            if last[r] != now:
                catch_up_row(weight, state, np.uintp(r), member, missed, True, hp)
                for c in range(weight.shape[1]):
                    save(weight, r, c, rows[member, c])
                    save_slots(state, np.uintp(r), c, load_slots(slots, member, c, hp), hp)
                last[r] = now
        block = claim(claims)
    if leave(claims):  # in this kernel, so that an interrupt cannot separate rows and steps
        restart(steps, now)
