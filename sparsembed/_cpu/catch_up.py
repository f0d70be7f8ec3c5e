"""Inputs and scratch space for kernels that apply missed steps to rows."""

from typing import Any

import numpy as np

from ..kernels.cpu import catch_up
from ..kernels.cpu._rows import whole_step
from . import memory, threads
from .blocks import blocks_of, padded
from .inputs import check_writeable


class Missed:
    """Inputs of kernels that apply the missed steps of a table: state, last steps and history, with scratch space.

    Parameters
    ----------
    contents : Contents
        Its history must be that of the newest step.
    """

    def __init__(self, contents: Any) -> None:
        self._contents, self._history = contents, contents.history

    @property
    def hyper(self) -> Any:
        """The scalars of the newest step."""
        history = self._history
        return type(self._contents.rule).Hyper(*history.past[history.newest])

    def whole(self, count: int) -> bool:
        """Whether a step of so many rows is one of all rows."""
        return bool(self._history.by_step and whole_step(count, self._contents.table.num_rows))  # type: ignore[no-untyped-call]

    def _facts(self) -> tuple[Any, ...]:
        history = self._history
        where = (history.base, history.newest, history.reach)
        return (self._contents.last, *where, history.entries, history.ages, history.past, history.by_step)

    def kernel(self, num_blocks: int) -> tuple[Any, ...]:
        """Return the argument `missed` of kernels that write rows, with scratch space for each thread."""
        members = 1 if num_blocks == 1 else threads.num_threads()
        state = self._contents.state
        width, dtype, gap = padded(state.shape[2]), state.dtype, type(self._contents.rule).Gap
        like = gap(*np.zeros(len(gap._fields), dtype))
        coefs = memory.zeros((members, padded(len(like))), dtype)
        rows = memory.zeros((members, width), dtype)
        return (*self._facts(), like, coefs, rows, memory.zeros((members, state.shape[1], width), dtype))

    def again(self, earlier: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the argument `missed` of the newest step, with the scratch space of an earlier one of this table."""
        facts = self._facts()
        return (*facts, *earlier[len(facts) :])

    def reading(self, num_blocks: int) -> tuple[Any, ...]:
        """Return the argument `catching_up` of kernels that read rows."""
        return self._contents.state, self.hyper, self.kernel(num_blocks)


def missed(contents: Any, writing: bool = False) -> Missed | None:
    """Return the missed steps up to the newest step; None if there are none, but `writing` needs them then, too."""
    if contents.history is None:
        return None
    concerns = contents.synced().concerns_readers
    return Missed(contents) if writing or concerns else None


def flush(contents: Any) -> None:
    """Apply the missed steps to every row, and note in `contents.steps` that a new history starts."""
    table, state = contents.table, contents.state
    check_writeable(table)
    contents.synced()
    rows = Missed(contents)
    num_blocks, block_size = blocks_of(table.num_rows, table.dim * table.dtype.itemsize * (2 + 2 * state.shape[1]))
    arguments = (table.array, state, contents.steps, rows.kernel(num_blocks), rows.hyper)
    threads.run(catch_up.flush_rows, num_blocks, block_size, *arguments)
