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
    advance : callable ``(history, t) -> (first, rows)``, or None
        What step ``base + t`` makes of `entries`: the rows from `first` to t, as a new array.
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
        advance: Callable[["History", int], tuple[int, Array]] | None,
        dtype: Any,
        base: int,
        product: int = -1,
        first: tuple[float, ...] = (),
    ) -> None:
        self.ages, self.reach, self._advance, self.base, self.product = ages, reach, advance, base, product
        self.entries, self.exact = np.zeros((64, columns)), np.zeros((64, fields))
        self.past = np.zeros((64, fields), dtype)
        self.entries[0, : len(first)] = first
        self._stand: tuple[int, tuple[int, Array] | None] = (
            0,
            None,
        )  # the newest step, and what is to be written of it
        self.kind_of_step: Callable[[tuple[float, ...]], Any] | None = None  # a history has steps of one kind
        self.start = 0  # which of the starts of its table this is

    @property
    def newest(self) -> int:
        """The newest step, counted from `base`."""
        return self._stand[0]

    def takes(self, hyper: tuple[float, ...]) -> bool:
        """Whether a step with these hyperparameters can follow, or every row must be brought up to date first."""
        if self.kind_of_step is None or not self.newest:
            return True
        return bool(self.kind_of_step(tuple(self.exact[1].tolist())) == self.kind_of_step(hyper))

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
        """Note the hyperparameters of a step, before it is taken; a step that is not taken is noted over."""
        t = step - self.base
        for name in ("entries", "exact", "past"):  # readers keep the arrays that they have
            if t >= len(array := getattr(self, name)):
                setattr(self, name, _double(array))
        self.exact[t] = self.past[t] = hyper

    def sync(self, step: int) -> None:
        """Count the steps taken since.

        What a step makes of `entries` is worked out apart, noted in one assignment, and then written: whatever
        interrupts a call, the next one goes on where it stood, and no step counts twice.
        """
        while True:
            newest, made = self._stand
            if made is not None:
                first, rows = made
                self.entries[first : first + len(rows)] = rows
                self._stand = newest, None
            if newest >= step - self.base:
                return
            self._stand = newest + 1, None if self._advance is None else self._advance(self, newest + 1)


def _double(array: Array) -> Array:
    larger = np.zeros((2 * len(array), array.shape[1]), array.dtype)
    larger[: len(array)] = array
    return larger
