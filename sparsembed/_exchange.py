"""Row gradients from and to the sparse forms of other libraries: torch COO, scipy CSR, TensorFlow's slices."""

import sys
from typing import Any, NamedTuple, Self

import numpy as np

from . import _launch
from . import _validate as check
from ._arrays import Array, kind_of, to_kind
from .plan import Plan


class IndexedSlices(NamedTuple):
    """A gradient as TensorFlow names and orders its parts."""

    values: Any
    indices: Any
    dense_shape: tuple[int, int]


class Exchange:
    """Conversions of a `RowGradient`."""

    __slots__ = ("_kind", "_rows", "_values", "num_rows")
    _kind: str
    _rows: Array
    _values: Array
    num_rows: int

    @classmethod
    def _make(cls, rows: Array, values: Array, num_rows: int, kind: str) -> Self:
        """Wrap what was checked, or what the kernels made."""
        gradient = cls.__new__(cls)
        gradient.num_rows, gradient._rows, gradient._values, gradient._kind = num_rows, rows, values, kind
        return gradient

    @classmethod
    def _summed(cls, indices: Any, values: Any, num_rows: int, dim: int) -> Self:
        """Make a gradient of indices in any order: adopted where they increase, else values are summed in order."""
        flat, shape = check.flat_ids(indices, num_rows, "indices")
        if len(shape) != 1:
            raise ValueError(f"indices must have shape (n,), got {shape}")
        grad, kind = check.gradient(values, shape, dim, None, "values"), kind_of(values)
        if (np.diff(flat) > 0).all():
            return cls._make(flat, grad, num_rows, kind)
        plan = Plan(flat, num_rows)
        return cls._make(plan.rows, _launch.segment_sum(plan, _launch.Gradients([grad], plan.counts)), num_rows, kind)

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
        torch = sys.modules.get("torch")
        if torch is None:
            raise ImportError("to_torch needs torch, which is not imported; import it, or use rows and values")
        rows = to_kind(self._rows.astype(np.int64, copy=False)[None], "torch")
        shape = (self.num_rows, self._values.shape[1])
        # Rows are in range and increase; without a word on checks torch warns.
        return torch.sparse_coo_tensor(
            rows, to_kind(self._values, "torch"), shape, is_coalesced=True, check_invariants=False
        )

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
        if kind_of(tensor) != "torch":
            raise TypeError(f"tensor must be a torch sparse COO tensor, got {type(tensor).__name__}")
        if not tensor.is_sparse or (tensor.sparse_dim(), tensor.dense_dim()) != (1, 1):
            got = f"{tensor.layout} of shape {tuple(tensor.shape)}"
            raise ValueError(
                f"tensor must be torch.sparse_coo of shape (num_rows, dim) with one sparse dimension, got {got}; "
                "make a gradient of ids and grad_out with se.coalesce"
            )
        if str(tensor.dtype) == "torch.bfloat16":
            raise TypeError("tensor is bfloat16, which NumPy does not have; convert with .float()")
        num_rows, dim = tensor.shape
        return cls._summed(tensor._indices()[0], tensor._values(), check.count(num_rows, "tensor.shape[0]"), dim)

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
        from scipy import sparse

        k, dim = self._values.shape
        offsets = np.zeros(self.num_rows + 1, np.int64)
        offsets[self._rows + np.int64(1)] = dim
        columns = np.tile(np.arange(dim, dtype=np.int64), k)
        arrays = (self._values.flatten(), columns, np.cumsum(offsets, out=offsets))
        return sparse.csr_array(arrays, shape=(self.num_rows, dim))

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
        TypeError, ValueError
            For anything else.

        Examples
        --------
        >>> import numpy as np, scipy.sparse, sparsembed as se
        >>> matrix = scipy.sparse.csr_array(np.array([[0.0, 0.0], [0.0, 5.0]]))
        >>> g = se.RowGradient.from_scipy(matrix)
        >>> g.rows, g.values
        (array([1], dtype=int32), array([[0., 5.]]))
        """
        if getattr(matrix, "format", None) != "csr" or matrix.ndim != 2:
            what = f"{type(matrix).__name__} of shape {getattr(matrix, 'shape', None)}"
            raise TypeError(f"matrix must be a scipy CSR array of shape (num_rows, dim), got {what}; use .tocsr()")
        data = check.floats(matrix.data, None, "matrix.data")
        num_rows, dim = (check.count(extent, f"matrix.shape[{i}]") for i, extent in enumerate(matrix.shape))
        own = type(matrix)((data, matrix.indices, matrix.indptr), shape=matrix.shape)
        own.check_format(full_check=True)  # an index outside would be written outside, too
        rows = np.flatnonzero(np.diff(own.indptr)).astype(own.indices.dtype)
        return cls._summed(rows, own[rows].toarray(), num_rows, dim)

    def to_indexed_slices(self) -> IndexedSlices:
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
        shape = (self.num_rows, int(self._values.shape[1]))
        return IndexedSlices(to_kind(self._values, self._kind), to_kind(self._rows, self._kind), shape)

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
        names = IndexedSlices._fields
        if all(hasattr(slices, name) for name in names):
            parts = [getattr(slices, name) for name in names]
        elif isinstance(slices, tuple | list) and len(slices) == len(names):
            parts = list(slices)
        else:
            raise TypeError(f"slices must have or be {', '.join(names)}, got {type(slices).__name__}")
        values, indices, dense_shape = parts
        if dense_shape is None:
            raise ValueError("slices has no dense_shape; pass (values, indices, (num_rows, dim))")
        shape = np.asarray(dense_shape)
        if shape.shape != (2,):
            raise ValueError(f"slices must have a dense_shape of (num_rows, dim), got {dense_shape!r}")
        num_rows, dim = (check.count(extent, f"dense_shape[{i}]") for i, extent in enumerate(shape.tolist()))
        return cls._summed(indices, values, num_rows, dim)
