"""Inputs and scratch space for kernels that apply missed steps to rows."""

from typing import Any

import numpy as np

from .._typing import Array
from ..kernels.cpu import catch_up
from ..rules._history import History
from . import memory, threads
from .blocks import blocks_of, padded
from .inputs import check_writeable


class Missed:
    """Inputs of kernels that apply missed steps: state, last steps and history, with scratch space.

    Parameters
    ----------
    rule : Rule
    state : array (num_rows, slots, dim)
    last : array (num_rows,)
        The last step that each row has taken.
    history : History
    """

    def __init__(self, rule: Any, state: Array, last: Array, history: History) -> None:
        dtype = state.dtype
        self.hyper = type(rule).Hyper(*history.past[history.newest])
        self._state, self._like = state, type(rule).Gap(*np.zeros(len(rule.Gap._fields), dtype))
        where = (history.base, history.newest, history.reach)
        self._missed = (last, *where, history.entries, history.ages, history.past, self._like)

    def kernel(self, num_blocks: int) -> tuple[Any, ...]:
        """Return the argument `missed` of kernels that write rows, with scratch space for each thread."""
        members = 1 if num_blocks == 1 else threads.num_threads()
        width, dtype = padded(self._state.shape[2]), self._state.dtype
        coefs = memory.zeros((members, padded(len(self._like))), dtype)
        rows = memory.zeros((members, width), dtype)
        return (*self._missed, coefs, rows, memory.zeros((members, self._state.shape[1], width), dtype))

    def reading(self, num_blocks: int) -> tuple[Any, ...]:
        """Return the argument `catching_up` of kernels that read rows."""
        return self._state, self.hyper, self.kernel(num_blocks)


def missed(contents: Any) -> Missed | None:
    """Return the missed steps up to the newest step; None if the rows of this table never miss one."""
    if contents.history is None:
        return None
    return Missed(contents.rule, contents.state, contents.last, contents.synced())


def flush(contents: Any) -> None:
    """Apply the missed steps to every row, and note in `contents.steps` that a new history starts."""
    table, state = contents.table, contents.state
    check_writeable(table)
    rows = Missed(contents.rule, state, contents.last, contents.synced())
    num_blocks, block_size = blocks_of(table.num_rows, table.dim * table.dtype.itemsize * (2 + 2 * state.shape[1]))
    arguments = (table.array, state, contents.steps, rows.kernel(num_blocks), rows.hyper)
    threads.run(catch_up.flush_rows, num_blocks, block_size, *arguments)
