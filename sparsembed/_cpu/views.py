"""The caller's arrays as kernels see them: contiguous, aligned, read-only views."""

from typing import Any

import numpy as np

from .._frameworks import Framework, framework_of
from .._typing import Array


def is_array(value: object) -> bool:
    """Whether a value is an array of one dimension or more, rather than a number or a list."""
    return len(getattr(value, "shape", ())) > 0  # a Series of polars has no ndim


def freeze(value: Any) -> Any:
    """Make an array, or the arrays in a list or tuple, read-only."""
    if isinstance(value, np.ndarray):
        value.setflags(write=False)
    elif isinstance(value, list | tuple):
        for each in value:
            freeze(each)
    return value


def read_only(array: Array) -> Array:
    """Return a contiguous, aligned, read-only view (a copy only if needed).

    Kernels take every input as read-only: one compiled version serves both kinds.
    """
    flags = array.flags
    if not (flags.c_contiguous and flags.aligned):
        array = np.require(array, requirements=["C", "A"])
    view = array.view()
    view.flags.writeable = False
    return view


def row_wise(array: Array) -> Array:
    """Return a matrix as a read-only view whose rows are contiguous (a copy only if needed).

    A slice of a larger array, such as the gradient of one of several stacked vectors, needs no copy.
    """
    if array.flags.aligned and (array.strides[1] == array.itemsize or array.shape[1] == 1):
        view = array.view()
        view.setflags(write=False)
        return view
    return read_only(array)


def overlaps(array: Array) -> bool:
    """Whether two elements share memory (as in a broadcast or strided view)."""
    if array.flags.c_contiguous or array.size < 2:
        return False
    axes = sorted((abs(s), e) for s, e in zip(array.strides, array.shape, strict=True) if e > 1)
    reach = array.itemsize  # bytes that the elements along the axes so far cover
    for stride, extent in axes:
        if stride < reach:
            break
        reach += (extent - 1) * stride
    else:
        return False
    (inner, columns), (outer, rows) = axes if len(axes) == 2 else ((0, 0), (0, 0))
    if inner < array.itemsize:
        return True
    # Rows may interleave: an element i rows further can overlap only elements j or j + 1 columns further.
    i = np.arange(1, min(rows, ((columns - 1) * inner + array.itemsize) // outer + 1))
    j = np.minimum(i * outer // inner, columns - 1)
    after = np.where(j + 1 < columns, (j + 1) * inner - i * outer, array.itemsize)
    return bool((np.minimum(i * outer - j * inner, after) < array.itemsize).any())


def caller_of(**arrays: Any) -> Framework:
    """Return the framework of the first of some arrays, for results that are handed out later."""
    return framework_of(next(iter(arrays.values())))
