"""RowGradient: a coalesced sparse gradient, as a value."""

import math
import operator
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain, repeat
from typing import Any, Self

import numpy as np

from . import _check as check
from . import _exchange
from ._clip import each_once, factor, parts_of
from ._cpu import inputs, memory, norms, sorting
from ._cpu.gradients import Gradients
from ._cpu.launch import segment_sum
from ._cpu.views import read_only
from ._engine import CPU
from ._frameworks import NUMPY, by_name, framework_of
from ._options import limit
from ._typing import Array


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

    Raises
    ------
    TypeError
        If rows are no integers, or values no floats.
    ValueError
        If shapes do not fit, or rows do not increase.
    IndexError
        If a row is out of range.

    Examples
    --------
    >>> import numpy as np, sparsembed as se
    >>> g = se.coalesce(np.array([7, 2, 7]), np.ones((3, 1)), num_rows=9)
    >>> (g + g.scale(0.5)).values.ravel()
    array([1.5, 3. ])
    >>> g.rows, g.dim, round(g.norm(), 3), g.is_finite()
    (array([2, 7]), 1, 2.236, True)
    >>> g.to_host() is g
    True
    >>> rows, values = 0.5 * g - g / 4
    >>> rows, values.ravel(), g.shape, g.dtype, g.nbytes
    (array([2, 7]), array([0.25, 0.5 ]), (9, 1), dtype('float64'), 32)
    >>> (-g).to_dense().ravel()
    array([ 0.,  0., -1.,  0.,  0.,  0.,  0., -2.,  0.])
    """

    __array_ufunc__ = None  # a NumPy number times a gradient is a gradient
    _instead = "step with table.apply(gradient); its arrays are gradient.rows and gradient.values"

    _held: Any  # the sums of a gradient on a GPU
    __slots__ = ("_engine", "_held", "_kind", "_rows", "_values", "num_rows")

    def __init__(self, rows: Any, values: Any, num_rows: int) -> None:
        num_rows = check.count(num_rows, "num_rows")
        flat, shape = inputs.flat_ids(rows, num_rows, "rows")
        if len(shape) != 1 or (np.diff(flat) <= 0).any():
            raise ValueError("rows must be one-dimensional and strictly increasing; use se.coalesce for raw ids")
        array = read_only(inputs.gradient(values, shape, None, None, "values"))
        self._hold(flat, array, num_rows, framework_of(values).name)

    def _hold(self, rows: Array, values: Array, num_rows: int, kind: str) -> None:
        self._engine, self.num_rows, self._rows, self._values, self._kind = CPU, num_rows, rows, values, kind

    @classmethod
    def _make(cls, rows: Array, values: Array, num_rows: int, kind: str) -> Self:
        """Return a gradient of arrays that need no check."""
        self = cls.__new__(cls)
        self._hold(rows, values, num_rows, kind)
        return self

    @classmethod
    def _summed(cls, engine: Any, call: Any, rows: Any, grads: Any, num_rows: int, padding: int) -> "RowGradient":
        """Return the sum of the gradients of each row, without the padding row."""
        found = engine.segment_sum(call, rows, grads, padding)
        if engine is CPU:
            rows, values = found
            return cls._make(rows, values, num_rows, call.name)
        self = cls.__new__(cls)
        self._engine, self.num_rows, self._held = engine, num_rows, found
        return self

    def __getattr__(self, name: str) -> Any:
        if name in ("_rows", "_values", "_kind"):
            raise AttributeError("a gradient on a GPU cannot do this; use what its to_host() returns")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)

    @property
    def _on_device(self) -> bool:
        return self._engine is not CPU

    @property
    def rows(self) -> Any:
        """Row numbers, increasing: array of shape (k,).  On a GPU it waits, and raises if ids were out of range."""
        return self._held.rows if self._on_device else by_name(self._kind).of_numpy(self._rows)

    @property
    def values(self) -> Any:
        """Gradient of each row: array of shape (k, dim).  On a GPU it waits, and raises if ids were out of range."""
        return self._held.values if self._on_device else by_name(self._kind).of_numpy(self._values)

    @property
    def dim(self) -> int:
        """Columns."""
        return int((self._held if self._on_device else self._values).shape[1])

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the table: (num_rows, dim)."""
        return self.num_rows, self.dim

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the values."""
        return np.dtype((self._held if self._on_device else self._values).dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of rows and values.  On a GPU it waits."""
        where = (self.rows, self.values) if self._on_device else (self._rows, self._values)
        return sum(int(each.nbytes) for each in where)

    def __iter__(self) -> Iterator[Any]:
        """Iterate over rows and values: ``rows, values = gradient``."""
        return iter((self.rows, self.values))

    def to_dense(self) -> Any:
        """Return the gradient of the whole table, with zeros for all other rows.

        Returns
        -------
        array of shape (num_rows, dim)
            Of the kind of `values`; it takes memory for every row of the table.

        Raises
        ------
        TypeError
            For a gradient on a GPU.
        """
        self._refuse_device("made dense")
        dense = memory.zeros(self.shape, self.dtype)
        dense[self._rows] = self._values
        return by_name(self._kind).of_numpy(dense)

    def _refuse_device(self, *what: str) -> None:
        if self._on_device:
            raise TypeError(f"gradients on a GPU are not {what[0]}; use what to_host() returns")

    def to_host(self) -> "RowGradient":
        """Return the gradient in host memory: itself, or a copy of one on a GPU, which can be added and clipped.

        Returns
        -------
        RowGradient
        """
        if not self._on_device:
            return self
        rows, values = self._held.to_host()
        return RowGradient(rows, values, self.num_rows)

    def __add__(self, other: object) -> "RowGradient":
        """Sum of two gradients: rows are merged, so memory is bounded by the rows ever touched."""
        if not isinstance(other, RowGradient):
            return NotImplemented
        if self._on_device or other._on_device:
            raise TypeError(
                "gradients are not added on a GPU; add what to_host() returns, or update with several lookups"
            )
        if (self.num_rows, self.dim) != (other.num_rows, other.dim):
            mine, its = (self.num_rows, self.dim), (other.num_rows, other.dim)
            raise ValueError(f"gradients must be of tables of equal shape, got {mine} and {its}")
        if self._values.dtype != other._values.dtype:
            raise TypeError(f"gradients must have one dtype, got {self._values.dtype} and {other._values.dtype}")
        lookups = [(each._rows, each._rows.shape) for each in (self, other)]
        rows = sorting.sort(lookups, ("rows", "rows"), self.num_rows, kept=True)
        grads = Gradients([self._values, other._values], rows.counts)
        return self._make(*segment_sum(NUMPY, rows, grads), self.num_rows, self._kind)

    def __neg__(self) -> "RowGradient":
        """Return the gradient with the other sign."""
        self._refuse_device("negated")
        return self._of(np.negative)

    def __sub__(self, other: object) -> "RowGradient":
        """Difference of two gradients: the sum with the negated second one."""
        return self + -other if isinstance(other, RowGradient) else NotImplemented

    def __mul__(self, factor: Any) -> "RowGradient":
        """Return the gradient times a number, as `scale` does."""
        self._refuse_device("multiplied")
        return self.scale(factor)

    __rmul__ = __mul__

    def __truediv__(self, divisor: object) -> "RowGradient":
        """Return the gradient divided by a number other than zero."""
        self._refuse_device("divided")
        return self._divided(check.real(divisor, "divisor"), "divisor")

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
            A copy; ``gradient * factor`` is the same.

        Raises
        ------
        TypeError, ValueError
            If `factor` is no number, or not finite.

        Examples
        --------
        >>> import numpy as np, sparsembed as se
        >>> se.RowGradient([1], np.array([[2.0]]), num_rows=2).scale(0.25).values
        array([[0.5]])
        """
        number, dtype = check.real(factor, "factor"), self._values.dtype
        if abs(number) > float(np.finfo(dtype).max):
            raise ValueError(f"factor must fit into {dtype}, got {factor!r}")
        with np.errstate(over="ignore"):  # the result may be infinite; see `is_finite`
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

        Raises
        ------
        TypeError, ValueError
            If `loss_scale` is no number, not finite, or not above zero.

        Examples
        --------
        >>> import numpy as np, sparsembed as se
        >>> g = se.RowGradient([1], np.array([[512.0]], np.float16), num_rows=2).unscale(1024.0)
        >>> g.values, g.is_finite()
        (array([[0.5]], dtype=float32), True)
        """
        return self._divided(check.positive(loss_scale, "loss_scale"), "loss_scale")

    def _divided(self, number: float, name: str) -> "RowGradient":
        dtype = self._values.dtype
        if not float(np.finfo(dtype).tiny) <= abs(number) <= float(np.finfo(dtype).max):
            raise ValueError(f"{name} must fit into {dtype} and not be zero, got {number!r}")
        with np.errstate(over="ignore"):  # a number below 1 may overflow; see `is_finite`
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
            A copy.

        Raises
        ------
        TypeError, ValueError
            If `limit` is no number, not finite, or negative.

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
            A copy.  Rows that are not larger keep their bits, rows with NaN or infinity stay.

        Raises
        ------
        TypeError, ValueError
            If `max_norm` is no number, not finite, or negative.

        Notes
        -----
        The summed gradient of a row is clipped, so the result does not depend on the order of the batch.  Norms
        are computed in float64.

        Examples
        --------
        >>> import numpy as np, sparsembed as se
        >>> g = se.RowGradient([0, 1], np.array([[3.0, 4.0], [0.3, 0.4]]), num_rows=2)
        >>> g.clip_rows(1.0).values.round(6)
        array([[0.6, 0.8],
               [0.3, 0.4]])
        """
        most = check.real(max_norm, "max_norm", least=0.0)
        values = memory.copy(self._values)
        norms.clip_rows(values, limit(most, 2.0, 0.0, values.dtype))
        return self._make(self._rows, values, self.num_rows, self._kind)

    def is_finite(self) -> bool:
        """Return whether no element is NaN or infinite.

        Returns
        -------
        bool
        """
        return bool(np.isfinite(self._values).all())

    def _of(self, function: Any, *arguments: Any) -> "RowGradient":
        """Return a gradient of the same rows, with a NumPy function applied to the values."""
        values = memory.empty(self._values.shape, self._values.dtype)
        function(self._values, *arguments, out=values)
        return self._make(self._rows, values, self.num_rows, self._kind)

    def norm(self) -> float:
        """Return the Euclidean norm of all values, accumulated in float64.

        Returns
        -------
        float
        """
        return norms.euclidean([self._values])

    def to_torch(self) -> Any:
        """Return a torch sparse COO tensor, coalesced, as ``nn.Embedding(sparse=True)`` leaves in ``weight.grad``.

        Returns
        -------
        torch.Tensor of shape (num_rows, dim), with one sparse dimension
            Its values share the memory of this gradient if the library made them; values that came from
            the caller, and the row numbers, are copied.

        Raises
        ------
        ImportError
            If torch has not been imported.

        Examples
        --------
        >>> import numpy as np, torch, sparsembed as se
        >>> se.RowGradient([2], np.array([[3.0]]), num_rows=4).to_torch().to_dense().T
        tensor([[0., 0., 3., 0.]], dtype=torch.float64)
        """
        return _exchange.to_torch(self._rows, self._values, self.num_rows)

    @classmethod
    def from_torch(cls, tensor: Any) -> Self:
        """Make a gradient of a torch sparse COO tensor, such as the gradient of ``nn.Embedding(sparse=True)``.

        Parameters
        ----------
        tensor : torch.Tensor of shape (num_rows, dim), in host memory
            Sparse COO with one sparse dimension, coalesced or not: repeated rows are summed in their order,
            as `sparsembed.coalesce` does.  Not copied where its rows increase.  float16 becomes float32.

        Returns
        -------
        RowGradient
            Whose rows and values are tensors, too.

        Raises
        ------
        TypeError, ValueError, IndexError
            For other tensors, and anything else.

        Examples
        --------
        >>> import torch, sparsembed as se
        >>> layer = torch.nn.Embedding(5, 1, sparse=True)
        >>> layer(torch.tensor([3, 1, 3])).sum().backward()
        >>> se.RowGradient.from_torch(layer.weight.grad).values.ravel()
        tensor([1., 2.])
        """
        return cls._make(*_exchange.from_torch(tensor))

    def to_scipy(self) -> Any:
        """Return a scipy CSR array, every element of the rows stored.

        Returns
        -------
        scipy.sparse.csr_array of shape (num_rows, dim)
            Its data are a copy.

        Notes
        -----
        CSR has an offset for each row of the table, so this takes 8 bytes for each of `num_rows`.

        Examples
        --------
        >>> import numpy as np, sparsembed as se
        >>> se.RowGradient([0, 2], np.array([[1.0, 2.0], [3.0, 4.0]]), num_rows=4).to_scipy().toarray()
        array([[1., 2.],
               [0., 0.],
               [3., 4.],
               [0., 0.]])
        """
        return _exchange.to_scipy(self._rows, self._values, self.num_rows)

    @classmethod
    def from_scipy(cls, matrix: Any) -> Self:
        """Make a gradient of a scipy CSR array: its rows that store anything.

        Parameters
        ----------
        matrix : scipy CSR array or matrix of shape (num_rows, dim), of float32 or float64
            Elements that are stored twice are summed.

        Returns
        -------
        RowGradient
            With zeros for elements that are not stored.

        Raises
        ------
        TypeError
            If `matrix` is no CSR matrix, or holds no float32 or float64.
        ValueError
            If it has no rows or no columns.

        Examples
        --------
        >>> import numpy as np, scipy.sparse, sparsembed as se
        >>> matrix = scipy.sparse.csr_array(np.array([[0.0, 0.0], [0.0, 5.0]]))
        >>> g = se.RowGradient.from_scipy(matrix)
        >>> g.rows, g.values
        (array([1], dtype=int32), array([[0., 5.]]))
        """
        return cls._make(*_exchange.from_scipy(matrix))

    def to_indexed_slices(self) -> _exchange.IndexedSlices:
        """Return ``(values, indices, dense_shape)``, the parts of a ``tf.IndexedSlices`` by name and in its order.

        Returns
        -------
        NamedTuple of values (k, dim), indices (k,), dense_shape (num_rows, dim)
            Arrays of the kind of this gradient's; not copied if they are NumPy's.

        Examples
        --------
        >>> import numpy as np, sparsembed as se
        >>> se.RowGradient([2], np.array([[3.0]]), num_rows=4).to_indexed_slices()
        IndexedSlices(values=array([[3.]]), indices=array([2]), dense_shape=(4, 1))
        """
        return _exchange.IndexedSlices(self.values, self.rows, (self.num_rows, self.dim))

    @classmethod
    def from_indexed_slices(cls, slices: Any) -> Self:
        """Make a gradient of a ``tf.IndexedSlices``, or of anything with its parts.

        Parameters
        ----------
        slices : object with `values`, `indices` and `dense_shape`, or a tuple of them in this order
            With values (n, dim) floats, indices (n,) int32 or int64, dense_shape (num_rows, dim).  Repeated
            indices are summed in their order; nothing is copied where they increase.

        Returns
        -------
        RowGradient

        Raises
        ------
        TypeError, ValueError, IndexError
            For parts that do not fit.

        Examples
        --------
        >>> import numpy as np, sparsembed as se
        >>> g = se.RowGradient.from_indexed_slices((np.array([[1.0], [2.0], [4.0]]), np.array([3, 1, 3]), (5, 1)))
        >>> g.rows, g.values.ravel()
        (array([1, 3]), array([2., 5.]))
        """
        return cls._make(*_exchange.from_indexed_slices(slices))

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise TypeError(f"a RowGradient is no array; {self._instead}; to_dense() makes an array of all rows")

    def __getstate__(self) -> tuple[None, dict[str, Any]]:
        if self._on_device:
            raise TypeError("a gradient on a GPU is not pickled; pickle what its to_host() returns")
        return None, {name: getattr(self, name) for name in ("_kind", "_rows", "_values", "num_rows")}

    def __setstate__(self, state: tuple[None, dict[str, Any]]) -> None:
        self._engine = CPU
        for name, value in state[1].items():
            setattr(self, name, value)

    def __repr__(self) -> str:
        if self._on_device:
            return f"RowGradient({self.num_rows} rows, dim={self.dim}, {self._held.shown})"
        k, dim = self._values.shape
        return f"RowGradient({k} of {self.num_rows} rows, dim={dim}, {self._values.dtype})"


def clip_by_global_norm(
    gradients: RowGradient | Iterable[RowGradient], max_norm: float, dense: Iterable[Any] = ()
) -> float:
    """Scale gradients in place so that their norm, taken together, is at most `max_norm`.

    Parameters
    ----------
    gradients : RowGradient, or iterable of RowGradient
    max_norm : float
        Not negative; ``math.inf`` only measures.  Factors are rounded down, so that the norm is above it by no more
        than its own rounding in float64.
    dense : iterable of float32 or float64 arrays
        The caller's dense gradients, which count and are scaled as well; None is left out, as ``p.grad`` of a
        parameter that was not used.  A gradient or an array that is listed twice counts once, and so does memory
        that several arrays of `dense` share.

    Returns
    -------
    float
        The norm before clipping.

    Raises
    ------
    TypeError
        If anything in `gradients` is no `RowGradient` in host memory, or if anything in `dense` is a number, which
        cannot be written to, hands out copies, or requires grad and so is a parameter in place of ``p.grad``.
    ValueError
        If the norm is not finite, or a dense array is read-only, has several elements in one place, or shares bytes
        with another that are not the same numbers.  Nothing is scaled by a call that raises.

    Notes
    -----
    Two passes over the values, the second only where the norm is above `max_norm`; the values of each RowGradient
    are copied then.  Arrays that overlap take 8 bytes an element more.

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
    each = each_once(gradients, RowGradient)
    parts = parts_of(dense)
    norm = norms.euclidean([*(gradient._values for gradient in each), *(part.numbers() for part in parts)])
    if not math.isfinite(norm):
        raise ValueError(
            f"the norm of the gradients is {norm}, expected a finite number; look for NaN or infinity before clipping"
        )
    if norm > max_norm:
        values = [gradient._of(np.multiply, factor(max_norm / norm, gradient._values))._values for gradient in each]
        scalings = [part.scaling(factor(max_norm / norm, part.array)) for part in parts]
        # One call into C, so that an interrupt comes before or after all of it.
        work = chain(map(operator.call, scalings), map(setattr, each, repeat("_values"), values))
        deque(work, maxlen=0)
    return norm
