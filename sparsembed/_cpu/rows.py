"""Rows of a table in host memory: append, take, replace them, and forget their state."""

import operator
from collections import deque
from itertools import repeat
from typing import Any

import numpy as np

from .._options import Options
from .._typing import Array
from . import memory, norms
from .inputs import table_of
from .store import hold


def grown(contents: Any, rows: Array) -> dict[str, Any]:
    """Return the parts of the table with these rows appended; their state is zero, and they have missed no step."""
    old, count = contents.table.array, contents.table.num_rows + len(rows)
    weight = memory.empty((count, contents.table.dim), old.dtype)
    weight[: len(old)], weight[len(old) :] = old, _limited(contents, rows)
    parts: dict[str, Any] = {"table": table_of(weight), "given": weight}
    for name in ("state", "row_state", "last"):
        mine = getattr(contents, name)
        if len(mine) or name != "last":
            parts[name] = memory.zeros((count, *mine.shape[1:]), mine.dtype)
            parts[name][: len(mine)] = mine
    if len(contents.last):
        parts["last"][len(old) :] = contents.step
    return parts


def taken(contents: Any, rows: Array, options: Options) -> dict[str, Any]:
    """Return the parts of a table of these rows, with their state and the steps that they have missed."""
    array = memory.empty((len(rows), contents.table.dim), contents.table.dtype)
    np.take(contents.table.array, rows, axis=0, out=array, mode="clip")  # the mode without a second copy
    parts = hold(None, array, contents.rule, options, constrain=False)
    for name in ("state", "row_state", "last"):
        if parts[name].size:
            np.take(getattr(contents, name), rows, axis=0, out=parts[name], mode="clip")
    return parts | {"steps": contents.steps.copy(), "history": contents.history and contents.history.copy()}


def reset(contents: Any, rows: Array, weights: Array, state: Any = None, keep: bool = False) -> None:
    """Give rows new weights, in one call into C, which an interrupt cannot split.

    Their state becomes zero, unless `keep`: then their slots are `state`, or stay if that is None.
    """
    weights = _limited(contents, weights)
    weights[rows == contents.padding] = 0
    arrays: list[Any] = [contents.table.array]
    values: list[Any] = [weights]
    if not keep:
        arrays, values = [*arrays, contents.state, contents.row_state], [*values, 0, 0]
    elif state is not None:
        arrays, values = [*arrays, contents.state], [*values, state]
    if len(contents.last):
        arrays, values = [*arrays, contents.last], [*values, contents.step]
    deque(map(operator.setitem, arrays, repeat(rows), values), maxlen=0)


def clear(contents: Any) -> None:
    """Set state and step to zero, in one call into C; every row has caught up."""
    arrays = [contents.state, contents.row_state, contents.last, contents.steps]
    steps = np.array([0, 0, contents.steps[2] + 1])  # an array: signal handlers run while NumPy converts a tuple
    deque(map(operator.setitem, arrays, repeat(...), [0, 0, 0, steps]), maxlen=0)


def own_ids(contents: Any, ids: Array) -> Array:
    """Return ids of the host as an array that lookups take."""
    return ids


def _limited(contents: Any, rows: Array) -> Array:
    """Return a copy of new rows, none longer than the largest norm."""
    found = np.array(rows, contents.table.dtype, order="C")
    if contents.limit is not None:
        norms.clip_rows(found, contents.limit)
    return found
