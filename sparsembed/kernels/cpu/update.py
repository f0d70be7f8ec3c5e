"""The fused update: sum each row's gradients and run the optimizer's rule on it, in one pass."""

import numpy as np

from ..._jit import inline, kernel
from ...rules._dispatch import (
    has_pair,
    has_row_stage,
    reduce,
    reduce_pair,
    row,
    row_pair,
    step,
)
from ._elements import load, load_row_slots, load_slots, save, save_row_slots, save_slots
from ._intrinsics import lane_sum, last_at_most, prefetch, row_address, row_at
from ._sharing import claim, enter, join, leave
from .catch_up import STEP, Missed, catch_up_row, restart
from .norm import clip_row
from .segment import Fetch, Segments, sum_segment


@inline
def update_row(weight, state, row_state, r, total, terms, others, member, missed, hp):
    """Run the rule on row r with the gradient sum `total`; `terms` and `others`: scratch space, zeros after dim."""
    stage = total.dtype.type(0)
    if missed is not None:
        steps = Missed(*missed)
        now = steps.base + steps.newest
        if steps.last[r] != now:
            catch_up_row(weight, state, r, member, steps, True, hp)
            for c in range(total.shape[0]):
                new, kept = step(steps.rows[member, c], total[c], load_slots(steps.slots, member, c, hp), stage, hp)
                save(weight, r, c, new)
                save_slots(state, r, c, kept, hp)
            steps.last[r] = now + 1
            return
        steps.last[r] = now + 1
    if has_pair(hp):
        for c in range(total.shape[0]):
            terms[c], others[c] = reduce_pair(load(weight, r, c), total[c], load_slots(state, r, c, hp), hp)
        dim = total.dtype.type(total.shape[0])
        row_slots = load_row_slots(row_state, r, hp)
        stage, new_row = row_pair(lane_sum(terms) / dim, lane_sum(others) / dim, row_slots, hp)
        save_row_slots(row_state, r, new_row, hp)
    elif has_row_stage(hp):
        for c in range(total.shape[0]):
            terms[c] = reduce(load(weight, r, c), total[c], hp)
        mean = lane_sum(terms) / total.dtype.type(total.shape[0])
        stage, new_row = row(mean, load_row_slots(row_state, r, hp), hp)
        save_row_slots(row_state, r, new_row, hp)
    for c in range(total.shape[0]):
        new, slots = step(load(weight, r, c), total[c], load_slots(state, r, c, hp), stage, hp)
        save(weight, r, c, new)
        save_slots(state, r, c, slots, hp)


@kernel
def update_rows(
    claims,
    num_blocks,
    block_size,
    weight,
    state,
    row_state,
    steps,
    segments,
    grads,
    hot,
    skip,
    fetch,
    scratch,
    missed,
    whole,
    limit,
    hp,
):
    """Update every row of `segments` except `skip`; if `whole`, every other row takes the step without a gradient.

    steps (3,) counts updates; weight (num_rows, dim); state (num_rows, slots, dim); row_state
    (num_rows, row_slots); scratch (threads, 3 * padded) of zeros, where padded is dim, rounded up
    to a multiple of 16; segments, grads, hot, fetch, missed and limit are the named tuples of `segment`, `catch_up` and
    `norm` as plain tuples; missed and limit may be None.
    """
    enter(claims)
    segments, fetch = Segments(*segments), Fetch(*fetch)
    rows, ahead = segments.rows, fetch.rows_ahead
    member, dim = join(claims), weight.shape[1]
    padded, whole = scratch.shape[1] // 3, missed is not None and whole
    total, terms, others = scratch[member, :dim], scratch[member, padded : 2 * padded], scratch[member, 2 * padded :]
    block = claim(claims)
    while block < num_blocks:
        first = block * block_size
        s = last_at_most(rows, first - 1) + 1 if whole else first
        for item in range(first, min((block + 1) * block_size, weight.shape[0] if whole else rows.shape[0])):
            if not whole and s + ahead < rows.shape[0]:
                soon = np.intp(rows[s + ahead])
                prefetch(row_address(weight, soon), fetch.lines)
                prefetch(row_address(state, soon), fetch.state_lines)
                prefetch(row_address(row_state, soon), row_state.shape[1])
                if missed is not None:
                    prefetch(row_address(Missed(*missed).last, soon), 1)
            r = np.uintp(item) if whole else np.uintp(rows[s])
            present = not whole or (s < rows.shape[0] and np.uintp(rows[s]) == r)
            taken = present and np.int64(r) != skip
            if taken or whole:
                found = row_address(scratch, member) + padded * scratch.itemsize  # of `terms`: zeros
                if taken:
                    found = sum_segment(total, s, segments.order, segments.offsets, grads, hot, fetch)
                update_row(weight, state, row_state, r, row_at(found, dim, total), terms, others, member, missed, hp)
                if limit is not None:
                    clip_row(weight, r, limit, member)
            s += present
        block = claim(claims)
    if leave(claims):
        steps[STEP] += 1  # in this kernel, so that an interrupt cannot separate rows and step
        if whole:
            restart(steps, steps[STEP])
