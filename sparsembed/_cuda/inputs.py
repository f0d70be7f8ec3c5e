"""Checks of arrays on a GPU, with the messages of the host, and the properties of a table's weight."""

from typing import Any, NamedTuple

import numpy as np

from .. import _check as check
from .._frameworks import framework_of
from .array import DeviceArray
from .views import view

MOST = 2**31  # ids of a call: kernels count them in int32


class Table(NamedTuple):
    """The properties of a weight, determined once."""

    array: DeviceArray
    result: np.dtype[Any]  # dtype of looked-up and pooled rows
    num_rows: int
    dim: int
    dtype: np.dtype[Any]


def table_of(array: DeviceArray) -> Table:
    """Return the `Table` of a checked weight."""
    result = np.dtype(np.float32) if array.dtype == np.float16 else array.dtype
    return Table(array, result, array.shape[0], array.shape[1], array.dtype)


def weight(value: Any, name: str = "weight", writeable: bool = False) -> Table:
    """Check a (num_rows, dim) table."""
    array = view(value, name)
    check.table_dtype(array.dtype, f"{name}.dtype")
    if len(array.shape) != 2 or array.shape[1] == 0:
        raise check.not_a_table(array.shape, name)
    if writeable:
        if array.dtype not in check.FLOATS:
            raise TypeError(f"{name} is float16, which is for lookups and pooling; train a float32 table")
        in_place(array, name)
    return table_of(array)


def check_writeable(table: Table) -> None:
    """Refuse a table whose weight cannot be changed."""
    in_place(table.array, "the table")


def hands_out_copies(value: Any) -> bool:
    """Whether a given array would not see what is written to it: device arrays do."""
    return False


def check_trainable(table: Table) -> None:
    """Refuse a table whose weight cannot be updated in place."""
    in_place(table.array, "the table")


def offsets(value: Any, n: int) -> DeviceArray:
    """Return offsets after a check of dtype and shape; kernels check the numbers at each use."""
    ends, shape = ids(value, "offsets")
    if len(shape) != 1 or not len(ends):
        raise ValueError(f"offsets must have shape (num_bags + 1,), got {shape}")
    return ends


def sample_weights(value: Any, dtype: Any = None, name: str = "per_sample_weights") -> DeviceArray:
    """Check weights of ids."""
    return floats(value, dtype, name)


def in_place(array: DeviceArray, name: str) -> None:
    """Refuse an array that cannot be changed in place."""
    if array.readonly:
        raise ValueError(f"{name} is read-only, so it cannot be changed in place; pass a copy")
    plain(array, name)


def ids(value: Any, name: str = "ids") -> tuple[DeviceArray, tuple[int, ...]]:
    """Return flat ids and their shape, after a check of their dtype."""
    framework = framework_of(value)
    array = view(framework.contiguous(framework.widened(value)), name)
    if array.dtype not in (np.int32, np.int64):
        mask = "; for a mask pass np.flatnonzero(mask), torch: mask.nonzero().flatten()"
        advice = mask if array.dtype.kind == "b" else "; convert with .astype(np.int64), torch: .long()"
        raise TypeError(f"{name} must be int32 or int64, got {array.dtype}{advice}")
    few_enough(array.size, name)
    plain(array, name)
    return array.reshape(array.size), array.shape


def few_enough(n: int, name: str) -> None:
    """Refuse more ids than kernels can count."""
    if n >= MOST:
        raise ValueError(f"{name} must be fewer than {MOST} on a GPU, got {n}; use several calls")


def floats(value: Any, dtype: Any, name: str) -> DeviceArray:
    """Return an array of floats in a dtype, or in any dtype of kernels; arrays of torch and CuPy are converted."""
    framework = framework_of(value)
    array = view(framework.contiguous(value if dtype is None else framework.converted(value, np.dtype(dtype))), name)
    if array.dtype.kind != "f":
        raise TypeError(
            f"{name} must hold floats on a GPU, got {array.dtype}; convert with .astype(np.float32), torch: .float()"
        )
    if array.dtype not in check.FLOATS or (dtype is not None and array.dtype != dtype):
        wanted = np.dtype(dtype if dtype is not None else np.float32)
        raise TypeError(f"{name} must be {wanted} on a GPU, got {array.dtype}; convert with .astype(np.{wanted})")
    plain(array, name)
    return array


def gradient(value: Any, leading: tuple[int, ...], dim: int | None, dtype: Any, name: str = "grad_out") -> DeviceArray:
    """Check a gradient of shape ``leading + (dim,)``; returns it as (n, dim)."""
    check.gradient_given(value, name)
    framework_of(value).refuse_tracked(value, name)
    array = floats(value, dtype, name)
    dim = check.gradient_shape(array.shape, leading, dim, name)
    return array.reshape(array.size // dim, dim)


def output(value: Any, shape: tuple[int, ...], dtype: Any, **sources: DeviceArray | None) -> DeviceArray:
    """Return a view of `out`, which must not share memory with `sources`."""
    framework_of(value).refuse_tracked(value, "out", "pass a tensor that does not")
    array = view(value, "out")
    if array.shape != shape:
        raise ValueError(f"out must have shape {shape}, got {array.shape}")
    if array.dtype != dtype:
        raise TypeError(f"out must be {np.dtype(dtype)}, got {array.dtype}")
    in_place(array, "out")
    for name, source in sources.items():
        if source is not None and array.overlaps(source):
            raise ValueError(f"out must not share memory with {name}; pass another array")
    return array


def plain(array: DeviceArray, name: str) -> None:
    """Refuse rows with gaps between them."""
    if array.extent != array.size:
        raise ValueError(f"{name} must be C-contiguous on a GPU; make it so with .contiguous() or ascontiguousarray")
