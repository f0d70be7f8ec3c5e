"""Compiled calls for few ids, and what a table keeps for them."""

from typing import Any, NamedTuple

import numpy as np
from numba import typeof, types

from .. import _check as check
from .._jit import PRESENT
from .._typing import Array
from ..kernels.cpu import few_steps
from ..kernels.cpu._keys import COUNTERS, INSERTION
from ..rules import SGD
from .blocks import padded
from .catch_up import Missed
from .entry import entry_of, matrix_type
from .inputs import IDS

MOST = 1 << 14  # ids of a call
BYTES = 1 << 22  # bytes that a call moves; with more, two threads are faster (SparseAdam, dim 64: from 4,096 ids on)
NO_STATE = {kind: (np.zeros((0, 0, 1), kind), np.zeros((0, 0), kind)) for kind in check.FLOATS}  # for rules without any
STEPS = np.zeros(3, np.int64)  # counts the steps of no table
_OFFSETS = matrix_type(np.dtype(np.int64), 1)
_KEYS = types.Array(types.uint64, 1, "C")
_kept: dict[Any, Any] = {}  # compiled calls without a table


class Prepared(NamedTuple):
    """What a table keeps for calls with few ids of one dtype, until its contents are replaced."""

    update: Any  # `few_steps.update_few` for lookups, once it is compiled; None before
    most: int  # ids of a call; 0 if the table does not take such calls
    room: Array  # memory for keys
    scratch: Array
    by_count: Any
    limit: Any
    missed: Any  # what `Missed.kernel` makes for one thread, or None
    hyper: Any  # the Numba type of the scalars of a step


def prepared(contents: Any, dtype: Any, n: int) -> Prepared | None:
    """Return what a table keeps for calls with n ids of a dtype; None if it takes no such call."""
    known: Prepared | None = contents.few.get(dtype)
    if known is None:
        if dtype not in IDS or contents.rule is None:
            return None
        known = contents.few[dtype] = _prepare(contents, dtype)
    if not 0 < n <= known.most:
        return None
    if len(known.room) < 2 * n + COUNTERS:
        room = np.empty(COUNTERS + 2 * (1 << (n - 1).bit_length()), np.uint64)  # grows as batches do
        known = contents.few[dtype] = known._replace(room=room)
    return known


def _prepare(contents: Any, dtype: Any) -> Prepared:
    table, width = contents.table, padded(contents.table.dim)
    most = min(MOST, BYTES // (table.dim * table.dtype.itemsize * (2 + contents.state.shape[1])))
    if table.dtype not in check.FLOATS or not table.array.flags.c_contiguous:
        most = 0
    by_count = PRESENT if contents.options.scale_grad_by_freq else None
    limit = None if contents.limit is None else (*contents.limit, np.zeros((1, width)))
    missed = None if contents.history is None else Missed(contents).kernel(1)
    scratch, hyper = np.zeros((4, width), table.dtype), hyper_type(type(contents.rule), table.dtype)
    return Prepared(None, most, np.empty(0, np.uint64), scratch, by_count, limit, missed, hyper)


def update(contents: Any, known: Prepared, dtype: Any) -> Any:
    """Return the compiled `few_steps.update_few` for lookups."""
    if known.update is None:
        known = contents.few[dtype] = known._replace(update=_compiled_update(contents, known, dtype))
    return known.update


def update_bags(contents: Any, known: Prepared, dtype: Any, shares: Array | None, bag_of: Array | None) -> Any:
    """Return the compiled `few_steps.update_few` for bags; see there for `shares` and `bag_of`."""
    key = (dtype, shares is None, bag_of is None)
    if key not in contents.few:
        contents.few[key] = _compiled_update(contents, known, dtype, _OFFSETS, shares, bag_of)
    return contents.few[key]


def _compiled_update(
    contents: Any,
    known: Prepared,
    dtype: Any,
    bag_offsets: Any = types.none,
    shares: Array | None = None,
    bag_of: Array | None = None,
) -> Any:
    item = contents.table.dtype
    weights = types.none if bag_of is None else matrix_type(item, 1)
    own = map(typeof, (contents.state, contents.row_state, contents.steps))
    lookups = (matrix_type(dtype, 1), bag_offsets, types.int64, weights, matrix_type(item))
    space = (_KEYS, typeof(shares), typeof(bag_of), matrix_type(item, 2, False))
    options = (types.int64, *map(typeof, (known.by_count, known.missed, known.limit)), known.hyper)
    return entry_of(few_steps.update_few, *lookups, matrix_type(item, 2, False), *own, *space, *options)


def reading(contents: Any, known: Prepared, dtype: Any) -> Any:
    """Return the compiled `few_steps.read_few`."""
    key = ("read", dtype)
    if key not in contents.few:
        item = contents.table.dtype
        arrays = (matrix_type(dtype, 1), matrix_type(item), typeof(contents.state), typeof(known.missed))
        contents.few[key] = entry_of(few_steps.read_few, *arrays, known.hyper, matrix_type(item, 2, False))
    return contents.few[key]


def addition(ids: Any, item: Any) -> Any:
    """Return the compiled `few_steps.update_few` of a weight without state."""
    key = ("add", ids, item)
    if key not in _kept:
        lookups = (matrix_type(ids, 1), types.none, types.int64, types.none, matrix_type(item))
        space = (_KEYS, types.none, types.none, matrix_type(item, 2, False), types.int64, *3 * (types.none,))
        own = (matrix_type(item, 2, False), *map(typeof, (*NO_STATE[item], STEPS)))
        _kept[key] = entry_of(few_steps.update_few, *lookups, *own, *space, hyper_type(SGD, item))
    return _kept[key]


def summation(ids: Any, item: Any, by_count: bool) -> Any:
    """Return the compiled `few_steps.sum_few`."""
    key = ("sum", ids, item, by_count)
    if key not in _kept:
        numbers = (types.int64, types.int64, types.int64 if by_count else types.none)
        own = (matrix_type(item, 1, False), matrix_type(ids, 1, False), matrix_type(item, 2, False))
        _kept[key] = entry_of(few_steps.sum_few, matrix_type(ids, 1), matrix_type(item), *numbers, _KEYS, *own)
    return _kept[key]


def sorting(ids: Any, bags: bool) -> Any:
    """Return the compiled `few_steps.sort_few`, of positions or of bags."""
    key = ("sort", ids, bags)
    if key not in _kept:
        index = matrix_type(np.dtype(np.int32), 1, False)
        lookups = (matrix_type(ids, 1), types.int64, _OFFSETS if bags else types.none)
        _kept[key] = entry_of(few_steps.sort_few, *lookups, _KEYS, matrix_type(ids, 1, False), index, index)
    return _kept[key]


def room_for(n: int) -> Array:
    """Return memory for the keys of n ids."""
    return np.empty(2 * n + COUNTERS if n > INSERTION else n, np.uint64)


def hyper_type(rule: Any, dtype: Any) -> Any:
    """Return the Numba type of the scalars of a step."""
    return typeof(rule.Hyper(*np.zeros(len(rule.Hyper._fields), dtype)))
