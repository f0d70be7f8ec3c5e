"""History: the coefficients of missed steps, shared by all rows of a table.

A row that no batch touches for k steps must be read as if the dense optimizer had taken these steps.  This takes
constant time per element.  The result depends on the weight and the slots of the row, and on a few coefficients for
each possible *first missed step*.  The history holds these coefficients, and each step updates them.  A row that
missed more than `reach` steps only decays any further, so older coefficients are not updated.
"""

from collections.abc import Callable
from copy import copy
from typing import Any

import numpy as np
import numpy.typing as npt

FARTHEST = 1 << 14  # steps without a gradient after which a row must be at rest
LONGEST = 1 << 15  # steps after which every row catches up and a new history starts
_SMALLEST, _LARGEST = 1e-150, 1e150  # range of a product of decays in float64

Array = npt.NDArray[Any]


class History:
    """The steps since `base`, a step that every row has taken.

    Parameters
    ----------
    columns, fields : int
        Numbers of coefficients and of hyperparameters per step.
    ages : array of shape (reach + 1, powers)
        Factors that depend only on the number of missed steps.
    advance : callable ``(history, t) -> (first, rows)``, or None
        Returns the `entries` after step ``base + t``: the rows from `first` to t, as a new array.  Or it writes them
        itself, in one call of a compiled function that writes t to ``written[0]``, too, and returns None.
    dtype : dtype
        The dtype of the table.
    base : int

    Attributes
    ----------
    entries : float64 array (steps, columns)
    past : array (steps, fields) of `dtype`; `exact` the same in float64
    by_step : bool
        Whether a missed step is the rule's `step` with a gradient of zero: updates of most rows step all then.  Each of
        these starts a history, with the functions of the one before: they must take `base` from their argument.
    product : int
        The column that holds a product over steps, which must not overflow or underflow; or -1.
    """

    def __init__(
        self,
        columns: int,
        fields: int,
        ages: Array,
        reach: int,
        advance: Callable[["History", int], tuple[int, Array] | None] | None,
        dtype: Any,
        base: int,
        product: int = -1,
        first: tuple[float, ...] = (),
    ) -> None:
        self.ages, self.reach, self._advance, self.base, self.product = ages, reach, advance, base, product
        self._shapes, self._first = (columns, fields, dtype), first
        self._begin()
        self.kind_of_step: Callable[[tuple[float, ...]], Any] | None = None  # all steps of a history have the same kind
        self.by_step = False
        self.start = 0  # the number of this history, as in `steps[STARTS]`

    def _begin(self) -> None:
        columns, fields, dtype = self._shapes
        self.entries, self.exact = np.zeros((64, columns)), np.zeros((64, fields))
        self.past = np.zeros((64, fields), dtype)
        self.entries[0, : len(self._first)] = self._first
        # The newest step, and the (first, rows) still to be written.
        self._stand: tuple[int, tuple[int, Array] | None] = (0, None)
        self.written = np.zeros(1, np.int64)  # the newest step that a compiled function has written

    @property
    def concerns_readers(self) -> bool:
        """Whether readers of the table must ask for missed steps.

        Not where no row has missed any.  A table whose rows have never caught up at once has not missed a step before
        its first one either, but readers of the other kind would be compiled for that one alone.
        """
        return bool(self.newest or not self.start)

    def renewed(self, base: int, start: int) -> "History":
        """Return a new history of the same rule, at a step that every row has taken; functions and ages are shared."""
        other = object.__new__(type(self))
        vars(other).update(vars(self) | {"base": base, "start": start})
        other._begin()
        return other

    @property
    def newest(self) -> int:
        """The newest step, counted from `base`."""
        return self._stand[0]

    def takes(self, hyper: tuple[float, ...]) -> bool:
        """Whether a step with these hyperparameters can follow; if not, every row must catch up first."""
        if self.kind_of_step is None or not self.newest:
            return True
        return bool(self.kind_of_step(tuple(self.exact[1].tolist())) == self.kind_of_step(hyper))

    @property
    def nbytes(self) -> int:
        """Bytes in use."""
        return int(self.entries.nbytes + self.exact.nbytes + self.past.nbytes + self.ages.nbytes)

    @property
    def full(self) -> bool:
        """Whether every row must catch up, and a new history start."""
        if self.product < 0:
            return self.newest >= LONGEST
        size = abs(float(self.entries[self.newest, self.product]))
        return self.newest >= LONGEST or not _SMALLEST < size < _LARGEST

    def copy(self) -> "History":
        """Return a history that goes on by itself; functions, and what they refer to, are shared."""
        other = copy(self)
        for name in ("entries", "exact", "past", "written"):
            setattr(other, name, getattr(self, name).copy())
        return other

    def record(self, step: int, hyper: tuple[float, ...]) -> None:
        """Store the hyperparameters of the next step; if that step is not taken, the next call overwrites them."""
        t = step - self.base
        if t >= len(self.past):
            for name in ("entries", "exact", "past"):  # replace, do not resize: other threads may read the old arrays
                if t >= len(array := getattr(self, name)):
                    setattr(self, name, _double(array))
        self.exact[t] = self.past[t] = hyper

    def sync(self, step: int) -> None:
        """Update `entries` for all steps up to `step`.

        The new rows of a step are computed first, stored in `_stand` by one assignment, and then written.  If a call
        is interrupted, the next call continues from `_stand`, so no step is applied twice.
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
