"""Calls with few ids: everything in one compiled call, which makes all checks of the values first.

The functions here return None, or False, for arguments that they do not take and for values that they refuse; nothing
has been written then, and the caller goes the general way, which raises the error.  They take NumPy arrays and torch
tensors, contiguous and of fitting dtypes.  An update of 32 ids takes 5 us in place of 50.
"""

from typing import Any

import numpy as np
from numba.core import config

from .. import _check as check
from .._frameworks import framework_of
from .._jit import PRESENT
from .._saved import check_next
from .._typing import Array
from ..kernels.cpu import few_steps
from ..rules import Rule
from ..rules.sgd import addition
from . import prepared
from .blocks import padded
from .catch_up import Missed
from .entry import host_array
from .inputs import IDS
from .prepared import BYTES, MOST, NO_STATE
from .reading import gather_few

_SUM, _MAX = check.MODES["sum"], check.MODES["max"]
_ROWS = 1 << 48  # rows of a table whose ids fit a key of 64 bits beside a position


def lookup_few(contents: Any, ids: Any) -> Any:
    """Return the rows of a small batch, with the steps that they have missed; None if it cannot."""
    if contents.is_free:
        return gather_few(contents.table.array, ids, contents.table)
    rows = host_array(ids)
    if rows is None or contents.rule is None:
        return None
    with contents.lock:
        if contents.history is None:  # another optimizer came meanwhile
            return None
        table, n = contents.table, rows.size
        history = contents.synced()
        if not history.concerns_readers:
            return gather_few(table.array, ids, table)
        known = prepared.prepared(contents, rows.dtype, n)
        if known is None:
            return None
        missed = Missed(contents).again(known.missed)
        past = history.past[history.newest]
        hyper = type(contents.rule).Hyper(*past) if config.DISABLE_JIT else tuple(past.tolist())
        out = np.empty((n, table.dim), table.dtype)
        read = prepared.reading(contents, known, rows.dtype)
        if read(rows.reshape(n), table.array, contents.state, missed, hyper, out) != few_steps.FOUND:
            return None
    return framework_of(ids).of_numpy(out.reshape(*rows.shape, table.dim))


def update_few(contents: Any, ids: Any, grad_out: Any) -> bool:
    """Take a step; return whether it was taken."""
    if type(ids) is list and type(grad_out) is list:
        ids, grad_out = _together(ids, grad_out)
    rows, grads = host_array(ids), host_array(grad_out)
    if rows is None or grads is None:
        return False
    with contents.lock:
        dim, n = contents.table.dim, rows.size
        known = prepared.prepared(contents, rows.dtype, n)
        if known is None or grads.shape != (*rows.shape, dim):
            return False
        if rows.ndim != 1:
            rows, grads = rows.reshape(-1), grads.reshape(n, dim)
        update = known.update or prepared.update(contents, known, rows.dtype)
        return _step(contents, known, update, (rows, None, 0, None), grads)


def update_bags_few(contents: Any, bags: Any, grad_out: Any, mode: Any) -> bool:
    """Take a step from the gradient of a pooled lookup; return whether it was taken."""
    if type(bags) is list and type(grad_out) is list and len(bags) == len(grad_out) == 1:
        (bags,), (grad_out,) = bags, grad_out
    place, grads = getattr(bags, "_place", None), host_array(grad_out)
    if place is None or grads is None or not (mode is None or type(mode) is str):
        return False
    number = bags._choices.get(mode)
    if number is None or number == _MAX:
        return False
    if bags._on_device or grads.shape != (place.num_bags, contents.table.dim):
        return False
    if place.num_bags > MOST:  # most are empty
        return False
    ids, dtype, weights = place.ids, contents.table.dtype, place.weights
    with contents.lock:
        known = prepared.prepared(contents, ids.dtype, len(ids))
        if known is None:
            return False
        shares = bag_of = None
        if weights is not None:
            weights = weights if weights.dtype == dtype else weights.astype(dtype)
            shares, bag_of = np.empty(len(ids), dtype), np.empty(len(ids), np.int32)
        elif number != _SUM:
            shares = np.empty(len(grads), dtype)
        update = prepared.update_bags(contents, known, ids.dtype, shares, bag_of)
        return _step(contents, known, update, (ids, place.offsets, number, weights), grads, shares, bag_of)


def _step(
    contents: Any,
    known: prepared.Prepared,
    update: Any,
    lookup: tuple[Any, ...],
    grads: Array,
    shares: Array | None = None,
    bag_of: Array | None = None,
) -> bool:
    """Take a step, as `Contents.take_step`; the caller holds the lock."""
    table, rule, step = contents.table, contents.rule, int(contents.steps[0])
    if contents.watch is not None or grads.dtype != table.dtype or not table.array.flags.writeable:
        return False
    hyper = tuple(rule.hyper(step + 1))
    if not rule.fits(hyper, table.dtype):
        return False
    check_next(rule, step)
    contents.record(step + 1, hyper)
    missed = None if contents.history is None else Missed(contents).again(known.missed)
    if config.DISABLE_JIT:  # plain Python finds the rule by the class
        hyper = rule.cast(hyper, step + 1, table.dtype)
    own = (table.array, contents.state, contents.row_state, contents.steps)
    arrays = (*own, known.room, shares, bag_of, known.scratch)
    options = (contents.padding, known.by_count, missed, known.limit, hyper)
    return bool(update(*lookup, grads, *arrays, *options) == few_steps.FOUND)


def _together(ids: list[Any], grad_out: list[Any]) -> tuple[Any, Any]:
    """Return several lookups as one, if their arrays fit together."""
    if len(ids) == len(grad_out) == 1:
        return ids[0], grad_out[0]
    rows: list[Any] = [host_array(each) for each in ids]
    grads: list[Any] = [host_array(each) for each in grad_out]
    if len(rows) != len(grads) or not rows or any(each is None for each in (*rows, *grads)) or not grads[0].ndim:
        return None, None
    dim, kinds = grads[0].shape[-1], {(each.dtype, grad.dtype) for each, grad in zip(rows, grads, strict=True)}
    shapes = [(*each.shape, dim) for each in rows]
    if not dim or len(kinds) > 1 or sum(each.size for each in rows) > MOST or [g.shape for g in grads] != shapes:
        return None, None
    return np.concatenate([each.reshape(-1) for each in rows]), np.concatenate([g.reshape(-1, dim) for g in grads])


def add_few(weight: Any, ids: Any, values: Any, alpha: float) -> bool:
    """Add rows to a weight, as `scatter_add` does; return whether it was done."""
    table, rows, grads = host_array(weight, True), host_array(ids), host_array(values)
    if table is None or rows is None or grads is None or table.ndim != 2 or rows.dtype not in IDS:
        return False
    n, dim, dtype = rows.size, table.shape[1], table.dtype
    if dtype not in check.FLOATS or not table.flags.writeable or grads.dtype != dtype or not Rule.fits((alpha,), dtype):
        return False
    if not 0 < n <= MOST or not dim or grads.shape != (*rows.shape, dim) or 2 * grads.nbytes > BYTES:
        return False
    if rows.ndim != 1:
        rows, grads = rows.reshape(-1), grads.reshape(n, dim)
    add, scratch = prepared.addition(rows.dtype, dtype), np.zeros((4, padded(dim)), dtype)
    arrays = (table, *NO_STATE[dtype], prepared.STEPS, prepared.room_for(n), None, None, scratch)
    lookup, options = (rows, None, 0, None, grads), (-1, None, None, None, addition(alpha, dtype))
    return bool(add(*lookup, *arrays, *options) == few_steps.FOUND)


def sum_few(ids: Any, grad_out: Any, num_rows: int, dim: int | None, dtype: Any, padding: int, by_count: bool) -> Any:
    """Return the rows of a batch without the padding row, and the sum of each row's gradients; None if it cannot."""
    rows, grads = host_array(ids), host_array(grad_out)
    if rows is None or grads is None or rows.dtype not in IDS or grads.dtype not in check.FLOATS:
        return None
    n = rows.size
    if not 0 < n <= MOST or num_rows > _ROWS or not grads.ndim or 2 * grads.nbytes > BYTES or not grads.size:
        return None
    if grads.shape != (*rows.shape, dim or grads.shape[-1]) or (dtype is not None and grads.dtype != dtype):
        return None
    if rows.ndim != 1:
        rows, grads = rows.reshape(-1), grads.reshape(n, -1)
    summed = prepared.summation(rows.dtype, grads.dtype, by_count)
    found, values = np.empty(n, rows.dtype), np.empty(grads.shape, grads.dtype)
    space = (prepared.room_for(n), np.empty(grads.shape[1], grads.dtype))
    k = summed(rows, grads, num_rows, padding, PRESENT if by_count else None, *space, found, values)
    if k < 0:
        return None
    found.resize(k, refcheck=False)  # gives back the memory of repeats, without a copy
    values.resize((k, grads.shape[1]), refcheck=False)
    found.flags.writeable = False
    return found, values


def sort_few(flat: Array, num_rows: int, bag_offsets: Array | None) -> tuple[Array, Array, Array] | None:
    """Return rows, order and offsets of ids as `Sorted` has them; None for ids out of range, or a hot segment."""
    entries = len(flat) if bag_offsets is None else len(bag_offsets) - 1
    if not 0 < (n := len(flat)) <= MOST or num_rows > _ROWS or entries > MOST:  # bags may be more than ids
        return None
    rows, room = np.empty(n, flat.dtype), np.empty(2 * n + 1, np.int32)
    ordered = prepared.sorting(flat.dtype, bag_offsets is not None)
    k = ordered(flat, num_rows, bag_offsets, prepared.room_for(n), rows, room[:n], room[n:])
    if k < 0:
        return None
    rows.flags.writeable = room.flags.writeable = False  # and so the slices
    return rows[:k], room[:n], room[n : n + k + 1]
