"""RowGradient: a coalesced sparse gradient, as a value."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import _launch, _memory, _norms
from . import _validate as check
from ._arrays import Array, kind_of, to_kind
from .plan import Plan


class RowGradient:
    """Gradient of some rows of a table: zero everywhere else.

    Parameters
    ----------
    rows : int32 or int64 array of shape (k,)
        Row numbers, strictly increasing; `sparsembed.coalesce` makes them so.
    values : float32 or float64 array of shape (k, dim)
        Gradient of each row; not copied.
    num_rows : int
        Rows of the table.

    Examples
    --------
    >>> import numpy as np, sparsembed as se
    >>> g = se.coalesce(np.array([7, 2, 7]), np.ones((3, 1)), num_rows=9)
    >>> (g + g.scale(0.5)).values.ravel()
    array([1.5, 3. ])
    >>> round(g.norm(), 3)
    2.236
    """

    __slots__ = ("_kind", "_rows", "_values", "num_rows")

    def __init__(self, rows: Any, values: Any, num_rows: int) -> None:
        self.num_rows = check.count(num_rows, "num_rows")
        flat, shape = check.flat_ids(rows, self.num_rows, "rows")
        if len(shape) != 1 or (np.diff(flat) <= 0).any():
            raise ValueError("rows must be one-dimensional and strictly increasing; use se.coalesce for raw ids")
        self._rows = flat
        self._values = check.gradient(values, shape, None, None, "values")
        self._kind = kind_of(values)

    @classmethod
    def _make(cls, rows: Array, values: Array, num_rows: int, kind: str) -> "RowGradient":
        """Wrap what the kernels made, unchecked."""
        gradient = cls.__new__(cls)
        gradient.num_rows, gradient._rows, gradient._values, gradient._kind = num_rows, rows, values, kind
        return gradient

    @property
    def rows(self) -> Any:
        """Row numbers, increasing: array of shape (k,)."""
        return to_kind(self._rows, self._kind)

    @property
    def values(self) -> Any:
        """Gradient of each row: array of shape (k, dim)."""
        return to_kind(self._values, self._kind)

    @property
    def dim(self) -> int:
        """Columns."""
        return int(self._values.shape[1])

    def __add__(self, other: object) -> "RowGradient":
        """Sum of two gradients: rows are merged, so memory is bounded by the rows ever touched."""
        if not isinstance(other, RowGradient):
            return NotImplemented
        if (self.num_rows, self.dim) != (other.num_rows, other.dim):
            mine, its = (self.num_rows, self.dim), (other.num_rows, other.dim)
            raise ValueError(f"gradients must be of tables of equal shape, got {mine} and {its}")
        if self._values.dtype != other._values.dtype:
            raise TypeError(f"gradients must have one dtype, got {self._values.dtype} and {other._values.dtype}")
        plan = Plan([self._rows, other._rows], self.num_rows)
        grads = _launch.Gradients([self._values, other._values], [len(self._rows), len(other._rows)])
        return self._make(plan.rows, _launch.segment_sum(plan, grads), self.num_rows, self._kind)

    def __radd__(self, other: object) -> "RowGradient":
        """Make ``sum(gradients)`` work, which starts at 0."""
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def scale(self, factor: float) -> "RowGradient":
        """Return the gradient times a number."""
        number = check.real(factor, "factor")
        values = _memory.empty(self._values.shape, self._values.dtype)
        np.multiply(self._values, self._values.dtype.type(number), out=values)
        return self._make(self._rows, values, self.num_rows, self._kind)

    def norm(self) -> float:
        """Return the Euclidean norm, accumulated in float64."""
        return math.sqrt(_norms.square(self._values))

    def __repr__(self) -> str:
        k, dim = self._values.shape
        return f"RowGradient({k} of {self.num_rows} rows, dim={dim}, {self._values.dtype})"


def clip_by_global_norm(gradients: Sequence[RowGradient], max_norm: float, dense: Sequence[Any] = ()) -> float:
    """Scale gradients in place so that their norm, taken together, is at most `max_norm`.

    Parameters
    ----------
    gradients : sequence of RowGradient
    max_norm : float
        Not negative.
    dense : sequence of float arrays
        The caller's dense gradients, which count and are scaled as well.

    Returns
    -------
    float
        The norm before clipping.

    Raises
    ------
    ValueError
        If the norm is not finite, or a dense array is read-only; nothing is scaled then.

    Examples
    --------
    >>> import numpy as np, sparsembed as se
    >>> g = se.coalesce(np.array([1]), np.array([[3.0]]), num_rows=2)
    >>> w = np.array([4.0])
    >>> se.clip_by_global_norm([g], max_norm=1.0, dense=[w])
    5.0
    >>> g.values, w
    (array([[0.6]]), array([0.8]))
    """
    max_norm = check.real(max_norm, "max_norm", least=0.0)
    for i, gradient in enumerate(check.several(gradients, "gradients", "RowGradient")):
        if not isinstance(gradient, RowGradient):
            raise TypeError(f"gradients[{i}] must be a RowGradient, got {type(gradient).__name__}")
    arrays = []
    for i, value in enumerate(check.several(dense, "dense", "arrays")):
        array = check.ndarray(value, f"dense[{i}]")
        if array.dtype not in check.FLOATS:
            raise TypeError(f"dense[{i}] must be float32 or float64, got {array.dtype}")
        if not array.flags.writeable:
            raise ValueError(f"dense[{i}] is read-only, but is scaled in place; pass a copy")
        arrays.append(array)
    squares = [_norms.square(gradient._values) for gradient in gradients]
    squares += [_norms.square(np.ascontiguousarray(array).reshape(1, -1)) for array in arrays]
    norm = math.sqrt(math.fsum(squares))
    if not math.isfinite(norm):
        raise ValueError(
            f"the norm of the gradients is {norm}, expected a finite number; look for NaN or infinity before clipping"
        )
    if norm > max_norm:
        factor = max_norm / norm
        for gradient in gradients:
            gradient._values = gradient.scale(factor)._values
        for array in arrays:
            np.multiply(array, array.dtype.type(factor), out=array)
    return norm
