"""History: what rows need to catch up with the steps that they missed, shared by all rows of a table.

A row that no batch touches for k steps must be read as if the dense optimizer had taken them.  That takes
constant time per element: what k steps without a gradient do depends on the row only through its weight and
slots, and on the steps only through a few numbers per *first missed step*, kept here and brought forward by
every step.  Steps further back than `reach` no longer move anything; their numbers only decay.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

FARTHEST = 1 << 14  # steps without a gradient after which a row must be at rest
LONGEST = 1 << 15  # steps after which every row is brought up to date and the history starts anew
_SMALLEST, _LARGEST = 1e-150, 1e150  # of a product of decays, kept in float64

Array = npt.NDArray[Any]


class History:
    """The steps since `base`, up to which every row was up to date.

    Parameters
    ----------
    columns, fields : int
        Numbers per step: coefficients, hyperparameters.
    ages : array of shape (reach + 1, powers)
        What depends on the number of missed steps alone.
    advance : callable ``(history, t)``
        Bring `entries` forward by step ``base + t``.
    dtype : dtype
        Of the table.
    base : int

    Attributes
    ----------
    entries : float64 array (steps, columns)
    past : array (steps, fields) of `dtype`; `exact` the same in float64
    product : int
        The column that holds a product over steps, which must neither over- nor underflow, or -1.
    """

    def __init__(
        self,
        columns: int,
        fields: int,
        ages: Array,
        reach: int,
        advance: Callable[["History", int], None],
        dtype: Any,
        base: int,
        product: int = -1,
        first: tuple[float, ...] = (),
    ) -> None:
        self.ages, self.reach, self._advance, self.base, self.product = ages, reach, advance, base, product
        self.entries, self.exact = np.zeros((64, columns)), np.zeros((64, fields))
        self.past = np.zeros((64, fields), dtype)
        self.entries[0, : len(first)] = first
        self.newest = 0
        self.kind_of_step: Callable[[tuple[float, ...]], Any] | None = None  # a history has steps of one kind
        self.kind: Any = None

    def takes(self, hyper: tuple[float, ...]) -> bool:
        """Whether a step with these hyperparameters can follow, or every row must be brought up to date first."""
        if self.kind_of_step is None:
            return True
        kind = self.kind_of_step(hyper)
        if self.kind is None:
            self.kind = kind
        return bool(self.kind == kind)

    @property
    def nbytes(self) -> int:
        """Bytes in use."""
        return int(self.entries.nbytes + self.exact.nbytes + self.past.nbytes + self.ages.nbytes)

    @property
    def full(self) -> bool:
        """Whether every row must be brought up to date, and the history start anew."""
        if self.product < 0:
            return self.newest >= LONGEST
        size = abs(float(self.entries[self.newest, self.product]))
        return self.newest >= LONGEST or not _SMALLEST < size < _LARGEST

    def record(self, step: int, hyper: tuple[float, ...]) -> None:
        """Note the hyperparameters of a step, before it is taken."""
        t = step - self.base
        if t >= len(self.exact):  # readers keep the arrays that they have
            self.entries, self.exact, self.past = (_double(each) for each in (self.entries, self.exact, self.past))
        self.exact[t] = self.past[t] = hyper

    def sync(self, step: int) -> None:
        """Count the steps taken since."""
        while self.newest < step - self.base:
            self._advance(self, self.newest + 1)
            self.newest += 1


def _double(array: Array) -> Array:
    larger = np.zeros((2 * len(array), array.shape[1]), array.dtype)
    larger[: len(array)] = array
    return larger
