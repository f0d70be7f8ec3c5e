"""The fused update: sum each row's gradients and run the optimizer's rule on it, in one pass."""

from typing import Any, NamedTuple

import numpy as np

from ...rules._dispatch import (
    has_pair,
    has_row_stage,
    reduce,
    reduce_pair,
    row,
    row_pair,
    step,
)
from ._instructions import (
    block,
    blocks,
    cast,
    first,
    inline,
    lanes_sum,
    lanewise,
    load,
    load_row_slots,
    load_slots,
    save,
    save_row_slots,
    save_slots,
    second,
    sync_warp,
    thread,
    tuple_at,
)
from ._sharing import NONE, group_of, group_sum, groups, mask_of, member_of
from .catch_up import Missed, caught_up, must_replay
from .segment import SHORT, Gradients, Segment, averaged, sum_hot_segment, sum_run

_reduce_lanes, _pair_lanes, _step_lanes = lanewise(reduce, 2), lanewise(reduce_pair, 3), lanewise(step, 3)


class Table(NamedTuple):
    """The arrays that an update changes."""

    weight: Any  # (num_rows, dim)
    state: Any  # (num_rows, slots, dim)
    row_state: Any  # (num_rows, row_slots)
    slots: Any
    row_slots: Any
    last: Any  # (num_rows,), set to `now`; None for rules whose rows miss nothing
    now: Any
    dim: Any


class Chunks(NamedTuple):
    """The chunks of a hot segment."""

    first: Any  # -1 if it has not been cut
    partials: Any


@inline
def _total(c, dim, segment, grads, hot, by_count, zero, shift):
    """Return the gradient sum of a row from column c on."""
    order, start, end = segment
    if hot is None:
        total = sum_run(zero, order, start, end, grads, dim, c)
    else:
        total = sum_hot_segment(order, hot.first, start, end, grads, hot.partials, dim, c, zero, shift)
    return averaged(total, end - start, by_count, zero)


@inline
def update_row(table, r, s, segment, grads, hot, by_count, missed, works, zero, shift, hp):
    """Update row r, which is segment s of the batch.

    If `hot` is not None, all threads of the block call this: all sum, and the threads with `works` run the rule.
    """
    weight, state, row_state, slots, row_slots, last, now, dim = table
    place, columns = member_of(shift) * len(zero), len(zero) << shift
    base, of_slots = r * dim, r * slots * dim
    stage, here = zero[0], _total(place, dim, segment, grads, hot, by_count, zero, shift)
    if has_pair(hp) or has_row_stage(hp):
        x, y, c = zero[0], zero[0], place
        while c - place < dim:
            g = here if c == place else _total(c, dim, segment, grads, hot, by_count, zero, shift)
            if works and c < dim:
                w = load(weight, base + c, zero)
                if has_pair(hp):
                    terms = _pair_lanes(w, g, load_slots(state, of_slots + c, dim, zero, hp), hp)
                    x += lanes_sum(first(terms))
                    y += lanes_sum(second(terms))
                else:
                    x += lanes_sum(_reduce_lanes(w, g, hp))
            c += columns
        if works:
            size, of_row = cast(dim, zero[0]), r * row_slots
            kept = load_row_slots(row_state, of_row, hp)
            sync_warp(mask_of(shift))  # all lanes have read what the first lane will write
            if has_pair(hp):
                stage, new = row_pair(group_sum(x, shift) / size, group_sum(y, shift) / size, kept, hp)
                if member_of(shift) == 0:
                    save_row_slots(row_state, of_row, new, hp)
            else:
                stage, new_row = row(group_sum(x, shift) / size, kept, hp)
                if member_of(shift) == 0:
                    save_row_slots(row_state, of_row, new_row, hp)
    replay = False
    if missed is not None and works:
        replay = must_replay(state, r, slots, dim, s, missed, zero, shift, hp)
    c = place
    while c - place < dim:
        g = here if c == place else _total(c, dim, segment, grads, hot, by_count, zero, shift)
        if works and c < dim:
            w, kept_slots = load(weight, base + c, zero), load_slots(state, of_slots + c, dim, zero, hp)
            if missed is not None:
                w, kept_slots = caught_up(w, kept_slots, s, replay, missed, zero, hp)
            taken = _step_lanes(w, g, kept_slots, stage, hp)
            save(weight, base + c, first(taken))
            save_slots(state, of_slots + c, dim, second(taken), hp)
        c += columns
    if missed is not None and works and member_of(shift) == 0:
        last[r] = now


def update_rows(
    weight,
    state,
    row_state,
    slots,
    row_slots,
    rows,
    order,
    offsets,
    found,
    grad,
    bags,
    coefs,
    winners,
    by_count,
    skip,
    dim,
    last,
    now,
    gap_coefs,
    spans,
    past,
    gaps,
    hyper,
    like,
    zero,
    shift,
    status,
):
    """Update every row with a short segment, except `skip`.

    The arguments up to row_slots, last, now and dim are a `Table`; gap_coefs, spans, past and gaps a `Missed`, unless
    `last` is None; `hyper` holds the rule's scalars, and `like` is a tuple of their kind.
    """
    if status[0] != NONE:
        return
    hp, s = tuple_at(hyper, 0, like), group_of(shift)
    table = Table(weight, state, row_state, slots, row_slots, last, now, dim)
    missed = None if last is None else Missed(gap_coefs, spans, past, gaps)
    while s < found[0]:
        r, start, end = np.int64(rows[s]), np.int64(offsets[s]), np.int64(offsets[s + 1])
        if end - start < SHORT and r != skip:
            segment, grads = Segment(order, start, end), Gradients(grad, bags, coefs, winners)
            update_row(table, r, s, segment, grads, None, by_count, missed, True, zero, shift, hp)
        s += groups(shift)


def update_hot_rows(
    weight,
    state,
    row_state,
    slots,
    row_slots,
    rows,
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
    skip,
    dim,
    last,
    now,
    gap_coefs,
    spans,
    past,
    gaps,
    hyper,
    like,
    zero,
    shift,
    status,
):
    """Update every row with a hot segment, one a block, except `skip`."""
    if status[0] != NONE:
        return
    hp, h, works = tuple_at(hyper, 0, like), np.int64(block()), thread() >> shift == 0
    table = Table(weight, state, row_state, slots, row_slots, last, now, dim)
    missed = None if last is None else Missed(gap_coefs, spans, past, gaps)
    while h < found[1]:
        s, chunk = np.int64(hot[h]), np.int64(hot_partials[h])
        r, start, end = np.int64(rows[s]), np.int64(offsets[s]), np.int64(offsets[s + 1])
        if r != skip:
            segment, grads = Segment(order, start, end), Gradients(grad, bags, coefs, winners)
            update_row(table, r, s, segment, grads, Chunks(chunk, partials), by_count, missed, works, zero, shift, hp)
        h += blocks()
