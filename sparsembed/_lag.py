"""What kernels need to bring rows up to date that missed steps."""

from typing import Any

import numpy as np

from . import _memory, _threads
from ._arrays import Array
from .kernels.cpu._intrinsics import LANES


def padded(dim: int) -> int:
    """Round up to whole lanes."""
    return -(-dim // LANES) * LANES


class Lag:
    """What a table whose rows catch up passes to kernels: its state, last steps and history."""

    def __init__(self, rule: Any, state: Array, last: Array, history: Any) -> None:
        dtype = state.dtype
        self.hyper = type(rule).Hyper(*history.past[history.newest])
        self._state, self._like = state, type(rule).Gap(*np.zeros(len(rule.Gap._fields), dtype))
        where = (history.base, history.newest, history.reach)
        self._lag = (last, *where, history.entries, history.ages, history.past, self._like)

    def kernel(self, num_blocks: int) -> tuple[Any, ...]:
        """Return `lag` with room for the rows of every thread."""
        threads = 1 if num_blocks == 1 else _threads.num_threads()
        width, dtype = padded(self._state.shape[2]), self._state.dtype
        coefs = _memory.zeros((threads, padded(len(self._like))), dtype)
        rows = _memory.zeros((threads, width), dtype)
        return (*self._lag, coefs, rows, _memory.zeros((threads, self._state.shape[1], width), dtype))

    def deferred(self, num_blocks: int) -> tuple[Any, ...]:
        """Return `deferred`, for kernels that read."""
        return self._state, self.hyper, self.kernel(num_blocks)
