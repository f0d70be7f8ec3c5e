"""Rows that missed steps, on a GPU: the history in device memory, and the kernels that read it."""

from typing import Any, NamedTuple

import numpy as np

from ..kernels.cuda import catch_up
from . import blocks as cut
from . import errors
from .array import DeviceArray

_ROWS_AT_ONCE = 1 << 20  # rows for which a flush computes gaps at once


class Gaps(NamedTuple):
    """The missed steps of rows, as arguments of kernels; see `kernels.cuda.catch_up`."""

    last: DeviceArray
    now: int
    gap_coefs: DeviceArray
    spans: DeviceArray
    past: DeviceArray
    gaps: Any

    @property
    def kernel(self) -> tuple[Any, ...]:
        """The arguments of kernels that read rows."""
        return self.gap_coefs, self.spans, self.past, self.gaps


class DeviceHistory:
    """The copy of a `History` in device memory; the `History` is in host memory."""

    def __init__(self) -> None:
        self._history: Any = None
        self.entries: Any = ()
        self.past: Any = ()
        self.ages: Any = ()
        self._seen = 0

    def sync(self, queue: Any, history: Any) -> None:
        """Upload history entries that changed since the last sync: new steps, and older ones within reach.

        The newest step that was copied is stored last: after an exception the next sync copies again.
        """
        room, newest = len(history.entries), history.newest
        entries, past, ages, low = self.entries, self.past, self.ages, max(0, self._seen - int(history.reach))
        if history is not self._history or room != len(entries):
            entries, low = queue.empty(history.entries.shape, np.float64), 0
            past = queue.empty(history.past.shape, history.past.dtype)
            ages = queue.upload(history.ages)
        high = min(newest + 2, room)  # + 2: the history already holds the step that comes next
        for mine, its in ((entries, history.entries), (past, history.past)):
            queue.write(mine.part(low, high - low), np.ascontiguousarray(its[low:high]))
        self.entries, self.past, self.ages, self._history, self._seen = entries, past, ages, history, newest

    def find(
        self,
        queue: Any,
        rule: Any,
        last: DeviceArray,
        n: int,
        hyper: DeviceArray,
        like: Any,
        status: DeviceArray,
        rows: DeviceArray | None = None,
        found: DeviceArray | None = None,
        start: int = 0,
    ) -> Gaps:
        """Return the gaps of n rows: of the first ``found[0]`` of `rows`, or of the table's rows from `start` on."""
        history, dtype = self._history, hyper.dtype
        gaps = type(rule).Gap(*np.zeros(len(rule.Gap._fields), dtype))
        spans, coefs = queue.empty((n, 3), np.int32), queue.empty((n, 2, len(gaps)), dtype)
        ages = self.ages
        if n:
            steps = (history.base, history.newest, int(history.reach))
            tables = (self.entries, self.entries.shape[1], ages, *ages.shape)
            arguments = (rows, start, n, found, last, *steps, *tables, spans, coefs, hyper, like, gaps, status)
            queue.launch(catch_up.find_gaps, queue.blocks(n, cut.THREADS), cut.THREADS, *arguments)
        return Gaps(last, history.base + history.newest + 1, coefs, spans, self.past, gaps)

    def gather(
        self,
        queue: Any,
        rule: Any,
        weight: DeviceArray,
        state: DeviceArray,
        last: DeviceArray,
        ids: DeviceArray,
        out: DeviceArray,
        hyper: DeviceArray,
        like: Any,
        status: DeviceArray,
    ) -> None:
        """``out[i]`` is row ``ids[i]`` as it is after the newest step."""
        n, dim, slots = len(ids), weight.shape[1], state.shape[1]
        if n:
            gaps = self.find(queue, rule, last, n, hyper, like, status, rows=ids)
            lanes = cut.lanes_of(dim, weight.dtype, weight, state if slots else None, out)
            arguments = (weight, state, slots, ids, n, dim, out, hyper, like, *gaps.kernel, *lanes, status)
            queue.launch(catch_up.gather_rows, queue.blocks(n, lanes.groups), cut.THREADS, *arguments)

    def flush(
        self,
        queue: Any,
        rule: Any,
        weight: DeviceArray,
        state: DeviceArray,
        last: DeviceArray,
        hyper: DeviceArray,
        like: Any,
        status: DeviceArray,
    ) -> None:
        """Bring every row up to date, 2**20 rows at a time, which bounds the scratch memory."""
        (num_rows, dim), slots = weight.shape, state.shape[1]
        lanes = cut.lanes_of(dim, weight.dtype, weight, state if slots else None)
        for start in range(0, num_rows, _ROWS_AT_ONCE):
            n = min(_ROWS_AT_ONCE, num_rows - start)
            gaps = self.find(queue, rule, last, n, hyper, like, status, start=start)
            arguments = (weight, state, slots, start, n, last, gaps.now - 1, dim, hyper, like)
            blocks = queue.blocks(n, lanes.groups)
            queue.launch(catch_up.flush_rows, blocks, cut.THREADS, *arguments, *gaps.kernel, *lanes, status)


class Missed:
    """A table whose rows may have missed steps, for kernels that read rows.

    Parameters
    ----------
    contents : Contents
    like : NamedTuple
        Hyperparameters of the newest step.
    """

    def __init__(self, contents: Any, like: Any) -> None:
        self._contents, self._like = contents, like

    def gather(self, call: Any, flat: DeviceArray, out: DeviceArray) -> None:
        """``out[i]`` is row ``flat[i]`` as it is after the newest step."""
        contents, like = self._contents, self._like
        hyper = call.queue.upload(np.array(like, contents.table.dtype))
        table = (contents.rule, contents.table.array, contents.state, contents.last)
        contents.where.history.gather(call.queue, *table, flat, out, hyper, like, call.status)


def missed(contents: Any, writing: bool = False) -> Missed | None:
    """Return the `Missed` of a table; None if rows of its rule never miss a step."""
    if contents.history is None:
        return None
    history = contents.synced()
    contents.where.history.sync(contents.where.home, history)
    return Missed(contents, type(contents.rule).Hyper(*history.past[history.newest]))


def gaps_of(
    queue: Any, contents: Any, n: int, hyper: DeviceArray, like: Any, status: DeviceArray, rows: Any, found: Any
) -> Gaps:
    """Return the `Gaps` of n rows; see `DeviceHistory.find`."""
    its: DeviceHistory = contents.where.history
    return its.find(queue, contents.rule, contents.last, n, hyper, like, status, rows, found)


def flush(contents: Any) -> None:
    """Bring every row up to date, on the home stream; the history starts anew."""
    where, history = contents.where, contents.synced()
    queue = where.home
    where.history.sync(queue, history)
    like = type(contents.rule).Hyper(*history.past[history.newest])
    hyper = queue.upload(np.array(like, contents.table.dtype))
    table = (contents.rule, contents.table.array, contents.state, contents.last)
    with where.current():
        where.history.flush(queue, *table, hyper, like, errors.new_status(queue))
        start_at(contents, contents.step)


def start_at(contents: Any, step: int) -> None:
    """Mark every row as up to date at a step, and start the history there."""
    contents.steps[:] = step, step, contents.steps[2] + 1
