"""RowGradient: a coalesced sparse gradient, as a value."""

import math
from collections import deque
from collections.abc import Sequence
from itertools import chain, repeat
from typing import Any

import numpy as np

from . import _launch, _memory, _norms
from . import _validate as check
from ._arrays import Array, kind_of, to_kind
from ._device import on_device
from ._exchange import Exchange
from .plan import Plan


class RowGradient(Exchange):
    """Gradient of some rows of a table: zero everywhere else.

    Parameters
    ----------
    rows : int32 or int64 array of shape (k,)
        Row numbers, strictly increasing; `sparsembed.coalesce` makes them so.
    values : float32 or float64 array of shape (k, dim)
        Gradient of each row; not copied.
    num_rows : int
        Rows of the table.

    Raises
    ------
    TypeError, ValueError, IndexError
        For rows and values of wrong dtype or shape, rows that do not increase, or a row out of range.  Methods
        raise them for arguments that do not fit.

    Examples
    --------
    >>> import numpy as np, sparsembed as se
    >>> g = se.coalesce(np.array([7, 2, 7]), np.ones((3, 1)), num_rows=9)
    >>> (g + g.scale(0.5)).values.ravel()
    array([1.5, 3. ])
    >>> g.rows, g.dim, round(g.norm(), 3), g.is_finite()
    (array([2, 7]), 1, 2.236, True)
    """

    __slots__ = ()

    def __init__(self, rows: Any, values: Any, num_rows: int) -> None:
        self.num_rows = check.count(num_rows, "num_rows")
        flat, shape = check.flat_ids(rows, self.num_rows, "rows")
        if len(shape) != 1 or (np.diff(flat) <= 0).any():
            raise ValueError("rows must be one-dimensional and strictly increasing; use se.coalesce for raw ids")
        self._rows = flat
        self._values = check.gradient(values, shape, None, None, "values")
        self._kind = kind_of(values)

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
        """Return the gradient times a number.

        Parameters
        ----------
        factor : float
            Finite, in the gradient's dtype too.

        Returns
        -------
        RowGradient
        """
        number, dtype = check.real(factor, "factor"), self._values.dtype
        if abs(number) > float(np.finfo(dtype).max):
            raise ValueError(f"factor must fit into {dtype}, got {factor!r}")
        with np.errstate(over="ignore"):  # `is_finite` tells
            return self._of(np.multiply, dtype.type(number))

    def unscale(self, loss_scale: float) -> "RowGradient":
        """Return the gradient divided by a number: what undoes the scaling of a loss in mixed precision.

        Parameters
        ----------
        loss_scale : float
            Finite and above zero, in the gradient's dtype too.

        Returns
        -------
        RowGradient
            Never in half precision: gradients of float16 have become float32 when this one was made.
            Infinities and NaN stay; see `is_finite`.

        Examples
        --------
        >>> import numpy as np, sparsembed as se
        >>> g = se.RowGradient([1], np.array([[512.0]], np.float16), num_rows=2).unscale(1024.0)
        >>> g.values, g.is_finite()
        (array([[0.5]], dtype=float32), True)
        """
        number, dtype = check.positive(loss_scale, "loss_scale"), self._values.dtype
        if not float(np.finfo(dtype).tiny) <= number <= float(np.finfo(dtype).max):
            raise ValueError(f"loss_scale must fit into {dtype}, got {loss_scale!r}")
        with np.errstate(over="ignore"):  # of a scale below one; `is_finite` tells
            return self._of(np.divide, dtype.type(number))

    def clip_values(self, limit: float) -> "RowGradient":
        """Return the gradient with every element brought into [-limit, limit]; NaN stays.

        Parameters
        ----------
        limit : float
            Finite, not negative.

        Returns
        -------
        RowGradient

        Examples
        --------
        >>> import numpy as np, sparsembed as se
        >>> se.RowGradient([1], np.array([[-3.0, 0.5]]), num_rows=2).clip_values(1.0).values
        array([[-1. ,  0.5]])
        """
        number = min(check.real(limit, "limit", least=0.0), float(np.finfo(self._values.dtype).max))
        most = self._values.dtype.type(number)
        return self._of(np.clip, -most, most)

    def clip_rows(self, max_norm: float) -> "RowGradient":
        """Return the gradient with every row scaled down to a Euclidean norm of at most `max_norm`.

        Parameters
        ----------
        max_norm : float
            Finite, not negative.

        Returns
        -------
        RowGradient
            Rows that are not larger keep their bits, rows with NaN or infinity stay.

        Notes
        -----
        Of the summed gradient, so that the result does not depend on how the batch was put together.  Norms
        are taken in float64.

        Examples
        --------
        >>> import numpy as np, sparsembed as se
        >>> g = se.RowGradient([0, 1], np.array([[3.0, 4.0], [0.3, 0.4]]), num_rows=2)
        >>> g.clip_rows(1.0).values.round(6)
        array([[0.6, 0.8],
               [0.3, 0.4]])
        """
        most = check.real(max_norm, "max_norm", least=0.0)
        values = _memory.copy(self._values)
        _norms.clip_rows(values, _norms.limit(most, 2.0, 0.0, values))
        return self._make(self._rows, values, self.num_rows, self._kind)

    def is_finite(self) -> bool:
        """Whether no element is NaN or infinite."""
        return bool(np.isfinite(self._values).all())

    def _of(self, function: Any, *arguments: Any) -> "RowGradient":
        """Return a gradient of the same rows, whose values are a NumPy function of these."""
        values = _memory.empty(self._values.shape, self._values.dtype)
        function(self._values, *arguments, out=values)
        return self._make(self._rows, values, self.num_rows, self._kind)

    def norm(self) -> float:
        """Return the Euclidean norm, accumulated in float64."""
        return _norms.euclidean([self._values])

    def __repr__(self) -> str:
        k, dim = self._values.shape
        return f"RowGradient({k} of {self.num_rows} rows, dim={dim}, {self._values.dtype})"


def clip_by_global_norm(gradients: Sequence[RowGradient], max_norm: float, dense: Sequence[Any] = ()) -> float:
    """Scale gradients in place so that their norm, taken together, is at most `max_norm`.

    Parameters
    ----------
    gradients : sequence of RowGradient
    max_norm : float
        Not negative; ``math.inf`` only measures.  Factors are rounded down, so that the norm is above it by no more
        than its own rounding in float64.
    dense : sequence of float arrays
        The caller's dense gradients, which count and are scaled as well.  A gradient or an array that is listed twice
        counts once.

    Returns
    -------
    float
        The norm before clipping.

    Raises
    ------
    TypeError, ValueError
        If the norm is not finite, or a dense array is read-only, hands out copies, or has several elements in one
        place; nothing is scaled then.

    References
    ----------
    Pascanu, Mikolov, Bengio, "On the difficulty of training recurrent neural networks", ICML 2013,
    https://arxiv.org/abs/1211.5063.

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
    if max_norm != math.inf:
        max_norm = check.real(max_norm, "max_norm", least=0.0)
    for i, gradient in enumerate(check.several(gradients, "gradients", "RowGradient")):
        if not isinstance(gradient, RowGradient):
            hint = "; pass what its to_host() returns" if on_device(gradient) else ""
            raise TypeError(f"gradients[{i}] must be a RowGradient, got {type(gradient).__name__}{hint}")
    each = list({id(gradient): gradient for gradient in gradients}.values())  # one listed twice counts once
    arrays = _once(dense)
    rows = [np.ascontiguousarray(array).reshape(1, -1) for array in arrays]
    norm = _norms.euclidean([*(gradient._values for gradient in each), *rows])
    if not math.isfinite(norm):
        raise ValueError(
            f"the norm of the gradients is {norm}, expected a finite number; look for NaN or infinity before clipping"
        )
    if norm > max_norm:
        values = [gradient._of(np.multiply, _factor(max_norm / norm, gradient._values))._values for gradient in each]
        factors = [_factor(max_norm / norm, array) for array in arrays]
        # In one call into C, so that an interrupt comes before all of it or after.
        work = chain(map(np.multiply, arrays, factors, arrays), map(setattr, each, repeat("_values"), values))
        deque(work, maxlen=0)
    return norm


def _once(dense: Any) -> list[Array]:
    """Check dense gradients, which are scaled in place; returns each memory once."""
    found: dict[Any, Array] = {}
    for i, value in enumerate(check.several(dense, "dense", "arrays")):
        array = check.ndarray(value, f"dense[{i}]")
        if array.dtype not in check.FLOATS:
            raise TypeError(f"dense[{i}] must be float32 or float64, got {array.dtype}")
        if array.size:
            check.in_place(array, f"dense[{i}]", "a copy")
            found.setdefault(_place(array), array)
    arrays = list(found.values())
    for i, array in enumerate(arrays):
        if any(np.shares_memory(array, other) for other in arrays[:i]):
            raise ValueError("arrays in dense share some of their memory, which would be scaled twice; pass it once")
    return arrays


def _place(array: Array) -> tuple[Any, ...]:
    """Where an array lies: equal for two views of the same numbers."""
    how = (array.size,) if array.flags.c_contiguous else (array.shape, array.strides)
    return array.__array_interface__["data"][0], *how, array.dtype.char


def _factor(factor: float, array: Array) -> Any:
    """Return a factor in an array's dtype, so far rounded down that rounding the products makes no norm too large."""
    kind = array.dtype.type
    number = kind(factor * (1 - 2.0 * float(np.finfo(kind).epsneg)))
    return number if number <= factor else np.nextafter(number, kind(0))
