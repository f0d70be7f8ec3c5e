"""The fused update: sum each row's gradients and run the optimizer's rule on it, in one pass."""

import numpy as np

from ..._jit import inline, kernel
from ...rules._dispatch import (
    has_pair,
    has_row_stage,
    load,
    load_row,
    reduce,
    reduce_pair,
    row,
    row_pair,
    step,
    store,
    store_row,
)
from ._intrinsics import lane_sum, prefetch, row_address, row_at
from ._sharing import claim, enter, finish, join, leave
from .catch_up import STEP, catch_up_row
from .norm import clip_row
from .segment import sum_segment


@inline
def _update_row(weight, state, row_state, r, total, terms, others, member, lag, hp):
    stage = weight.dtype.type(0)
    if lag is not None:
        last, where, rows, slots = lag[0], lag[1], lag[7], lag[8]
        catch_up_row(weight, state, r, member, lag, True, hp)
        for c in range(total.shape[0]):
            new, kept = step(rows[member, c], total[c], load(slots, member, c, hp), stage, hp)
            weight[r, c] = new
            store(state, r, c, kept, hp)
        last[r] = where[0] + where[1] + 1
        return
    if has_pair(hp):
        for c in range(total.shape[0]):
            terms[c], others[c] = reduce_pair(weight[r, c], total[c], load(state, r, c, hp), hp)
        dim = weight.dtype.type(total.shape[0])
        stage, new_row = row_pair(lane_sum(terms) / dim, lane_sum(others) / dim, load_row(row_state, r, hp), hp)
        store_row(row_state, r, new_row, hp)
    elif has_row_stage(hp):
        for c in range(total.shape[0]):
            terms[c] = reduce(weight[r, c], total[c], hp)
        mean = lane_sum(terms) / weight.dtype.type(total.shape[0])
        stage, new_row = row(mean, load_row(row_state, r, hp), hp)
        store_row(row_state, r, new_row, hp)
    for c in range(total.shape[0]):
        new, slots = step(weight[r, c], total[c], load(state, r, c, hp), stage, hp)
        weight[r, c] = new
        store(state, r, c, slots, hp)


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
    lag,
    limit,
    hp,
):
    """Update every row of `segments` = (rows, order, offsets) except `skip`.

    steps (3,) counts updates; weight (num_rows, dim); state (num_rows, slots, dim); row_state
    (num_rows, row_slots); scratch (threads, 3 * padded) of zeros, where padded is dim, rounded up
    to a multiple of 16; `lag` as in `catch_up`, and `limit` as in `norm`, or None.
    """
    if not enter(claims):
        return
    rows, order, offsets = segments
    ahead, lines, state_lines, _, _ = fetch
    member, dim = join(claims), weight.shape[1]
    padded = scratch.shape[1] // 3
    total, terms, others = scratch[member, :dim], scratch[member, padded : 2 * padded], scratch[member, 2 * padded :]
    block = claim(claims)
    while block < num_blocks:
        for s in range(block * block_size, min((block + 1) * block_size, rows.shape[0])):
            if s + ahead < rows.shape[0]:
                soon = np.intp(rows[s + ahead])
                prefetch(row_address(weight, soon), lines)
                prefetch(row_address(state, soon), state_lines)
                prefetch(row_address(row_state, soon), row_state.shape[1])
                if lag is not None:
                    prefetch(row_address(lag[0], soon), 1)
            r = np.uintp(rows[s])
            if rows[s] != skip:
                found = sum_segment(total, s, order, offsets, grads, hot, fetch)
                _update_row(weight, state, row_state, r, row_at(found, dim, total), terms, others, member, lag, hp)
                if limit is not None:
                    clip_row(weight, r, limit, member)
        finish(claims)
        block = claim(claims)
    if leave(claims, num_blocks):
        steps[STEP] += 1  # here, so that no interrupt can come between the rows and the step
