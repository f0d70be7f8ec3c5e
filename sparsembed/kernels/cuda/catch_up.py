"""Apply missed steps to rows: the result is what a dense optimizer gives.

`find_gaps` computes what each row of a batch missed, once a row and in float64, the dtype of the history:
`spans` (k, 3) holds the first missed step (-1 if none), the last step that may have to be taken one by one, both
counted from the start of the history, and whether more steps follow; `coefs` (k, 2, fields) holds a `Gap` over all
missed steps, and a `Gap` over the steps that follow.  Kernels on rows then stay in the dtype of the table.  `missed` is
a `Missed`, or None for rules whose rows miss nothing; j is the row's place in `spans`.
"""

from typing import Any, NamedTuple

import numpy as np

from ...rules._dispatch import catch_up, gap, is_guarded, is_unsettled, step
from ._instructions import (
    any_lane,
    any_of,
    first,
    inline,
    lanewise,
    load,
    load_slots,
    matrix,
    pointer_at,
    save,
    save_once,
    save_slots,
    second,
    tuple_at,
)
from ._sharing import NONE, first_item, group_of, groups, items_apart, mask_of, member_of

_catch_up_lanes, _unsettled_lanes, _step_lanes = lanewise(catch_up, 2), lanewise(is_unsettled, 1), lanewise(step, 3)


class Missed(NamedTuple):
    """The steps that rows have missed: the results of `find_gaps`."""

    coefs: Any  # (k, 2, fields)
    spans: Any  # (k, 3)
    past: Any  # (steps, hyperparameters)
    like: Any  # a `Gap` of the rule


def find_gaps(
    rows,
    start,
    n,
    found,
    last,
    base,
    newest,
    reach,
    entries,
    columns,
    ages,
    age_rows,
    powers,
    spans,
    coefs,
    hyper,
    like,
    gaps,
    status,
):
    """Write the `spans` and `coefs` of some rows.

    The rows are the first ``found[0]`` of `rows` (n,), or n rows of the table from `start` on if `rows` is None;
    entries (newest + 1, columns) and ages (age_rows, powers) are a `History`, and `gaps` a `Gap`.
    """
    if status[0] != NONE:
        return
    hp, fields = tuple_at(hyper, 0, like), len(gaps)
    history, table = matrix(entries, newest + 1, columns), matrix(ages, age_rows, powers)
    count, j = n if found is None else np.int64(found[0]), first_item()
    while j < count:
        r = start + j if rows is None else np.int64(rows[j])
        seen = np.int64(last[r]) - base
        spans[3 * j], spans[3 * j + 1], spans[3 * j + 2] = -1, -1, 0
        if seen < newest:
            end = min(seen + reach, newest)
            spans[3 * j], spans[3 * j + 1], spans[3 * j + 2] = seen, end, 1 if end < newest else 0
            gap(history, seen, newest, table, reach, pointer_at(coefs, 2 * j * fields), hp)
            if end < newest:
                gap(history, end, newest, table, reach, pointer_at(coefs, (2 * j + 1) * fields), hp)
        j += items_apart()


@inline
def must_replay(state, r, slots, dim, j, missed, zero, shift, hp):
    """Return whether the series is not exact enough for an element of the row; all lanes of the group agree."""
    coefs, spans, _, like = missed
    found = False
    if spans[3 * j] >= 0:
        coef = tuple_at(coefs, 2 * j * len(like), like)
        if is_guarded(coef, hp):
            c = member_of(shift) * len(zero)
            while c < dim:
                kept = load_slots(state, r * slots * dim + c, dim, zero, hp)
                found = found or any_lane(_unsettled_lanes(kept, coef, hp))
                c += len(zero) << shift
            found = any_of(mask_of(shift), found)
    return found


@inline
def caught_up(w, s, j, replay, missed, zero, hp):
    """Return weights and slots as they are after the newest step."""
    coefs, spans, past, like = missed
    start, end, left, at = np.int64(spans[3 * j]), np.int64(spans[3 * j + 1]), spans[3 * j + 2], 2 * j * len(like)
    if replay:
        for t in range(start + 1, end + 1):
            taken = _step_lanes(w, zero, s, zero[0], tuple_at(past, t * len(hp), hp))
            w, s = first(taken), second(taken)
        at += len(like)
    if start >= 0 and (left != 0 or not replay):
        moved = _catch_up_lanes(w, s, tuple_at(coefs, at, like), hp)
        w, s = first(moved), second(moved)
    return w, s


def gather_rows(weight, state, slots, ids, n, dim, out, hyper, like, coefs, spans, past, gaps, zero, shift, status):
    """``out[i]`` is row ``ids[i]`` as it is after the newest step; nothing of the table changes."""
    if status[0] != NONE:
        return
    hp, missed, i = tuple_at(hyper, 0, like), Missed(coefs, spans, past, gaps), group_of(shift)
    while i < n:
        r = np.int64(ids[i])
        replay = must_replay(state, r, slots, dim, i, missed, zero, shift, hp)
        c = member_of(shift) * len(zero)
        while c < dim:
            w, s = load(weight, r * dim + c, zero), load_slots(state, r * slots * dim + c, dim, zero, hp)
            w, s = caught_up(w, s, i, replay, missed, zero, hp)
            save_once(out, i * dim + c, w)
            c += len(zero) << shift
        i += groups(shift)


def flush_rows(
    weight, state, slots, start, n, last, now, dim, hyper, like, coefs, spans, past, gaps, zero, shift, status
):
    """Bring n rows of the table, from `start` on, up to date with step `now`, in place."""
    if status[0] != NONE:
        return
    hp, missed, j = tuple_at(hyper, 0, like), Missed(coefs, spans, past, gaps), group_of(shift)
    while j < n:
        r = start + j
        replay = must_replay(state, r, slots, dim, j, missed, zero, shift, hp)
        c = member_of(shift) * len(zero)
        while c < dim:
            w, s = load(weight, r * dim + c, zero), load_slots(state, r * slots * dim + c, dim, zero, hp)
            w, s = caught_up(w, s, j, replay, missed, zero, hp)
            save(weight, r * dim + c, w)
            save_slots(state, r * slots * dim + c, dim, s, hp)
            c += len(zero) << shift
        if member_of(shift) == 0:
            last[r] = now
        j += groups(shift)
