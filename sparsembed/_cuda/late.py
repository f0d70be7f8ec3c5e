"""Rows that missed steps, on the device: its copy of the history, and the kernels that need it."""

from typing import Any

import numpy as np

from ..kernels.cuda import catch_up
from . import launch
from .array import DeviceArray
from .launch import Lag, lanes_of

_ROWS_AT_ONCE = 1 << 20  # that a flush works out gaps for


class LateRows:
    """The device's copy of a `History`, which the host keeps."""

    def __init__(self) -> None:
        self._history: Any = None
        self.entries: Any = ()
        self.past: Any = ()
        self.ages: Any = ()
        self._seen = 0

    def sync(self, queue: Any, history: Any) -> None:
        """Copy what steps have changed since: the last ones, and all that still move.

        What has been copied is noted at the end, so that an exception on the way loses nothing.
        """
        room, newest = len(history.entries), history.newest
        entries, past, ages, low = self.entries, self.past, self.ages, max(0, self._seen - int(history.reach))
        if history is not self._history or room != len(entries):
            entries, low = queue.empty(history.entries.shape, np.float64), 0
            past = queue.empty(history.past.shape, history.past.dtype)
            ages = queue.upload(history.ages)
        high = min(newest + 2, room)  # the step that is about to be taken is on record, too
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
    ) -> Lag:
        """Return what n rows have missed: `rows`, of which ``found[0]`` count, or those from `start` on."""
        history, dtype = self._history, hyper.dtype
        gaps = type(rule).Gap(*np.zeros(len(rule.Gap._fields), dtype))
        spans, coefs = queue.empty((n, 3), np.int32), queue.empty((n, 2, len(gaps)), dtype)
        ages = self.ages
        if n:
            steps = (history.base, history.newest, int(history.reach))
            tables = (self.entries, self.entries.shape[1], ages, *ages.shape)
            arguments = (rows, start, n, found, last, *steps, *tables, spans, coefs, hyper, like, gaps, status)
            queue.launch(catch_up.find_gaps, queue.blocks(n, launch.THREADS), launch.THREADS, *arguments)
        return Lag(last, history.base + history.newest + 1, coefs, spans, self.past, gaps)

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
            lag = self.find(queue, rule, last, n, hyper, like, status, rows=ids)
            lanes = lanes_of(dim, weight.dtype, weight, state if slots else None, out)
            arguments = (weight, state, slots, ids, n, dim, out, hyper, like, *lag.kernel, *lanes, status)
            queue.launch(catch_up.gather_rows, queue.blocks(n, lanes.groups), launch.THREADS, *arguments)

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
        """Bring every row up to date, a million at a time."""
        (num_rows, dim), slots = weight.shape, state.shape[1]
        lanes = lanes_of(dim, weight.dtype, weight, state if slots else None)
        for start in range(0, num_rows, _ROWS_AT_ONCE):
            n = min(_ROWS_AT_ONCE, num_rows - start)
            lag = self.find(queue, rule, last, n, hyper, like, status, start=start)
            arguments = (weight, state, slots, start, n, last, lag.now - 1, dim, hyper, like)
            blocks = queue.blocks(n, lanes.groups)
            queue.launch(catch_up.flush_rows, blocks, launch.THREADS, *arguments, *lag.kernel, *lanes, status)
