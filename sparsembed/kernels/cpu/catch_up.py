"""Bring rows up to date that missed steps: what a dense optimizer would have made of them."""

from typing import Any, NamedTuple

import numpy as np

from ..._jit import inline, kernel
from ...rules._dispatch import catch_up, gap, is_guarded, is_unsettled, step
from ._elements import load, load_slots, save, save_slots
from ._intrinsics import prefetch, row_address, tuple_at
from ._sharing import claim, enter, finish, join, leave

STEP, BASE, STARTS = 0, 1, 2  # of `steps`: taken; up to which every row was up to date; how often that was so
AHEAD, AHEAD_CATCHING_UP = 32, 10  # rows to prefetch; with state, each takes three times as many cache lines


class Missed(NamedTuple):
    """What tells a kernel the steps that a row has missed, and scratch space for rows that catch up.

    Kernels are given the plain tuple, or None for rules whose rows miss nothing: Numba's dispatcher takes 1.5 us to
    find the type of a named one (a call with 32 ids takes 50 us).
    """

    last: Any  # (num_rows,) the step up to which a row is up to date
    base: Any  # the step at which the history starts
    newest: Any  # the newest step, counted from `base`
    reach: Any  # steps without a gradient that still move a row
    entries: Any  # (steps, columns), as in `History`
    ages: Any  # (ages, powers), as in `History`
    past: Any  # (steps, fields), as in `History`
    like: Any  # a `Gap` of the rule
    coefs: Any  # scratch (threads, fields) for a `Gap`
    rows: Any  # scratch (threads, padded dim) for a row
    slots: Any  # scratch (threads, slots, padded dim) for the slots of a row


class CatchingUp(NamedTuple):
    """What kernels that read rows need besides the weights; the plain tuple, or None where rows miss nothing."""

    state: Any  # (num_rows, slots, dim)
    hp: Any
    missed: Any  # `Missed`


@inline
def prefetch_row(weight, r, lines, catching_up):
    """Ask for what reading a row takes."""
    prefetch(row_address(weight, r), lines)
    if catching_up is not None:
        table = CatchingUp(*catching_up)
        prefetch(row_address(table.state, r), lines * table.state.shape[1])
        prefetch(row_address(Missed(*table.missed).last, r), 1)


@inline
def catch_up_row(weight, state, r, member, missed, keep, hp):
    """Write row r as it is after the newest step to ``rows[member]``, and to ``slots[member]`` if `keep`."""
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
    """Take the missed steps one by one while they move the row: the series is too short for an element."""
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
    """Note that every row is up to date at a step: a history starts there, and none from before counts any more."""
    steps[BASE] = step
    steps[STARTS] += 1


@kernel
def flush_rows(claims, num_blocks, block_size, weight, state, steps, missed, hp):
    """Bring every row of the table up to date, in place, and note in `steps` that a history starts there."""
    if not enter(claims):
        return
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
        finish(claims)
        block = claim(claims)
    if leave(claims, num_blocks):  # here, so that no interrupt can come between the rows and the note
        restart(steps, now)
