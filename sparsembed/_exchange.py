"""Row gradients from and to the sparse forms of other libraries: torch COO, scipy CSR, TensorFlow's slices."""

import sys
from typing import Any, NamedTuple

import numpy as np

from . import _check as check
from ._cpu.gradients import Gradients
from ._cpu.inputs import floats, gradient, ids, in_range
from ._cpu.launch import segment_sum
from ._cpu.sorting import sort
from ._cpu.views import read_only
from ._frameworks import NUMPY, TORCH, framework_of
from ._typing import Array

Parts = tuple[Array, Array, int, str]  # rows, values, num_rows, name of the framework of the input


class IndexedSlices(NamedTuple):
    """A gradient with the field names and order of ``tf.IndexedSlices``."""

    values: Any
    indices: Any
    dense_shape: tuple[int, int]


def summed(indices: Any, values: Any, num_rows: int, dim: int) -> Parts:
    """Return a gradient: adopted if `indices` strictly increase, otherwise sorted, and repeats summed in order."""
    flat, shape = ids(indices, "indices")
    if len(shape) != 1:
        raise ValueError(f"indices must have shape (n,), got {shape}")
    grad, kind = read_only(gradient(values, shape, dim, None, "values")), framework_of(values).name
    if (np.diff(flat) > 0).all():
        if len(flat) and not (flat[0] >= 0 and flat[-1] < num_rows):  # they increase, so the first and the last decide
            in_range(flat, num_rows, "indices", shape)
        return flat, grad, num_rows, kind
    rows = sort([(flat, shape)], ("indices",), num_rows, kept=True)  # checks the range of the ids
    return *segment_sum(NUMPY, rows, Gradients([grad], rows.counts)), num_rows, kind


def to_torch(rows: Array, values: Array, num_rows: int) -> Any:
    """Return a torch sparse COO tensor, coalesced, as ``nn.Embedding(sparse=True)`` leaves in ``weight.grad``."""
    torch = sys.modules.get("torch")
    if torch is None:
        raise ImportError("to_torch needs torch, which is not imported; import it, or use rows and values")
    numbers = TORCH.of_numpy(rows.astype(np.int64, copy=False)[None])
    shape = (num_rows, values.shape[1])
    # The rows are valid, so no check is needed; torch warns if check_invariants is not given.
    return torch.sparse_coo_tensor(numbers, TORCH.of_numpy(values), shape, is_coalesced=True, check_invariants=False)


def from_torch(tensor: Any) -> Parts:
    """Return the gradient in a torch sparse COO tensor, such as the gradient of ``nn.Embedding(sparse=True)``."""
    if framework_of(tensor) is not TORCH:
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
    tensor = tensor.detach()
    return summed(tensor._indices()[0], tensor._values(), check.count(num_rows, "tensor.shape[0]"), dim)


def to_scipy(rows: Array, values: Array, num_rows: int) -> Any:
    """Return a scipy CSR array, every element of the rows stored."""
    from scipy import sparse

    k, dim = values.shape
    offsets = np.zeros(num_rows + 1, np.int64)
    offsets[rows + np.int64(1)] = dim
    columns = np.tile(np.arange(dim, dtype=np.int64), k)
    arrays = (values.flatten(), columns, np.cumsum(offsets, out=offsets))
    return sparse.csr_array(arrays, shape=(num_rows, dim))


def from_scipy(matrix: Any) -> Parts:
    """Return the gradient in a scipy CSR array: the rows with at least one stored element."""
    if getattr(matrix, "format", None) != "csr" or matrix.ndim != 2:
        what = f"{type(matrix).__name__} of shape {getattr(matrix, 'shape', None)}"
        raise TypeError(f"matrix must be a scipy CSR array of shape (num_rows, dim), got {what}; use .tocsr()")
    data = floats(matrix.data, None, "matrix.data")
    num_rows, dim = (check.count(extent, f"matrix.shape[{i}]") for i, extent in enumerate(matrix.shape))
    own = type(matrix)((data, matrix.indices, matrix.indptr), shape=matrix.shape)
    own.check_format(full_check=True)  # scipy writes outside of its arrays for an index out of range
    rows = np.flatnonzero(np.diff(own.indptr)).astype(own.indices.dtype)
    return summed(rows, own[rows].toarray(), num_rows, dim)


def from_indexed_slices(slices: Any) -> Parts:
    """Return the gradient in a ``tf.IndexedSlices``, or in any object with the same fields."""
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
    return summed(indices, values, num_rows, dim)
