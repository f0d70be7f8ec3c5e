"""Every check, and every message: which argument, what was expected, what came, what to do."""

import math
import operator
import sys
from typing import Any

import numpy as np

from ._arrays import Array, as_array, overlaps, read_only, row_wise
from .kernels.cpu.sort import first_outside
from .rules import Rule

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
MODES = {"sum": 0, "mean": 1, "sqrtn": 2, "max": 3}


def count(value: Any, name: str, least: int = 1) -> int:
    """Check an integer such as `num_rows`."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {type(value).__name__} {value!r}") from None
    if isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be an integer, got a bool")
    if not least <= number < 2**63:
        raise ValueError(f"{name} must be at least {least} and below 2**63, got {number}")
    return number


def step(value: Any, name: str) -> int:
    """Check a number of steps, which may be an array of one."""
    array = as_array(value, name)
    if array.size != 1:
        raise ValueError(f"{name} must be one integer, got an array of shape {array.shape}")
    return count(array.item(), name, least=0)


def flag(value: Any, name: str) -> bool:
    """Check a switch."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def real(value: Any, name: str, least: float = -math.inf) -> float:
    """Check a finite number such as `alpha`."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.floating | np.integer):
        raise TypeError(f"{name} must be a number, got {type(value).__name__} {value!r}")
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        raise ValueError(f"{name} must be a number that float64 can hold, got one of {value.bit_length()} bits")
    if not (math.isfinite(value) and value >= least):
        floor = "" if least == -math.inf else f" and at least {least}"
        raise ValueError(f"{name} must be finite{floor}, got {value!r}")
    return float(value)


def positive(value: Any, name: str) -> float:
    """Check a finite number above zero such as `max_norm`."""
    number = real(value, name)
    if number <= 0:
        raise ValueError(f"{name} must be above zero, got {value!r}")
    return number


def norm_type(value: Any) -> float:
    """Check the p of a p-norm."""
    return math.inf if isinstance(value, float) and value == math.inf else positive(value, "norm_type")


def shape(value: Any) -> tuple[int, ...]:
    """Check the shape of an array to make."""
    if not isinstance(value, tuple | list) or not value:
        raise TypeError(f"shape must be a tuple of integers such as (num_rows, dim), got {value!r}")
    return tuple(count(extent, f"shape[{i}]", least=0) for i, extent in enumerate(value))


def several(value: Any, name: str, what: str) -> list[Any]:
    """Check a list of things."""
    if not isinstance(value, list | tuple):
        raise TypeError(f"{name} must be a list or tuple of {what}, got {type(value).__name__}")
    return list(value)


def ndarray(value: Any, name: str) -> Array:
    """Check an array that is written to: what hands out a copy would never see what is written."""
    if isinstance(value, list | tuple):
        raise TypeError(f"{name} is written to in place, so it must be an array, got a {type(value).__name__}")
    array = as_array(value, name)
    own = isinstance(value, np.ndarray) or not array.size or (array.ndim == 0 and array.dtype.kind != "f")
    if not own and _address(array) != _address(as_array(value, name)):
        # Two views of one memory lie at one address; two copies that are both alive do not.
        raise TypeError(
            f"{name} is written to in place, but a {type(value).__name__} hands out copies of its memory; pass the "
            "array itself, or write a copy back where it came from"
        )
    return array


def _address(array: Array) -> int:
    return int(array.__array_interface__["data"][0])


def size(num_rows: int, dim: int, dtype: np.dtype[Any]) -> None:
    """Check that a table's size can be addressed."""
    if num_rows * dim * dtype.itemsize >= 2**63:
        wanted = f"num_rows * dim = {num_rows} * {dim}"
        raise ValueError(f"{wanted} needs more bytes than an address can count; use fewer rows or a smaller dim")


def table_dtype(dtype: Any, name: str = "dtype") -> np.dtype[Any]:
    """Check the dtype of a table."""
    try:
        result = np.dtype("V" if dtype is None else dtype)  # NumPy takes None for float64
    except TypeError:
        raise TypeError(f"{name} must be float32, float64 or float16, got {dtype!r}") from None
    if result not in (*FLOATS, np.dtype(np.float16)):
        got = "None" if dtype is None else result
        raise TypeError(f"{name} must be float32, float64 or float16, got {got}; convert with .astype(np.float32)")
    return result


def weight(value: Any, name: str = "weight", writeable: bool = False) -> Array:
    """Check a (num_rows, dim) table; returns a view of the caller's memory."""
    array = ndarray(value, name) if writeable else as_array(value, name)
    table_dtype(array.dtype, f"{name}.dtype")
    if array.ndim != 2 or array.shape[1] == 0:
        raise ValueError(f"{name} must have shape (num_rows, dim) with dim at least 1, got {array.shape}")
    if not array.flags.aligned:
        raise ValueError(f"{name} must be aligned to its items; copy it with np.require({name}, requirements='A')")
    if writeable:
        if array.dtype not in FLOATS:
            raise TypeError(f"{name} is float16, which is for lookups and pooling; train a float32 table")
        in_place(array, name, "a writeable array or a copy")
    return array


def in_place(array: Array, name: str, instead: str) -> None:
    """Refuse a table that cannot be updated in place."""
    if not array.flags.writeable:
        raise ValueError(f"{name} is read-only, but is updated in place; pass {instead}")
    if overlaps(array):
        raise ValueError(f"{name} uses some memory for two elements, so its rows cannot differ; pass {instead}")


def optimizer(value: Any, dtype: np.dtype[Any]) -> None:
    """Refuse what is not a rule, and rules for tables that cannot be trained."""
    if value is None:
        return
    if not isinstance(value, Rule):
        raise TypeError(f"optimizer must be a sparsembed rule such as se.SparseAdam(lr=1e-3), got {value!r}")
    if dtype not in FLOATS:
        raise TypeError(f"optimizer needs a float32 or float64 table, got {dtype}; float16 is for lookups and pooling")


def ids(value: Any, name: str = "ids") -> Array:
    """Check the kind of ids; any shape, int32 or int64."""
    array = as_array(value, name)
    if array.dtype not in (np.int32, np.int64):
        if array.size == 0 and isinstance(value, list | tuple):
            return array.astype(np.int64)  # an empty list has no dtype of its own
        advice = "convert with .astype(np.int64)" if array.dtype.kind in "biuf" else "pass an array of whole numbers"
        raise TypeError(f"{name} must be int32 or int64, got {array.dtype}; {advice}")
    return array


def in_range(flat: Array, num_rows: int, name: str, shape: tuple[int, ...]) -> None:
    """Refuse ids outside [0, num_rows), naming the first."""
    position = first_outside(flat, num_rows)
    if position >= 0:
        if 0 <= (found := int(flat[position])) < num_rows:
            raise IndexError(
                f"{name} were changed by another thread while they were checked, and some were out of range; leave "
                "them as they are until the call returns, or pass a copy"
            )
        where = ", ".join(str(index) for index in np.unravel_index(position, shape)) if shape else "()"
        raise IndexError(
            f"{name}[{where}] is {found}, expected 0 <= id < {num_rows} (num_rows); "
            "correct the id, or use a larger table"
        )


def flatten(value: Any, name: str) -> tuple[Array, tuple[int, ...]]:
    """Check the kind of ids; return them flat and read-only, and their shape."""
    array = ids(value, name)
    return read_only(array).reshape(-1), array.shape


def flat_ids(value: Any, num_rows: int, name: str = "ids") -> tuple[Array, tuple[int, ...]]:
    """Check ids completely; return them flat and read-only, and their shape."""
    flat, shape = flatten(value, name)
    in_range(flat, num_rows, name, shape)
    return flat, shape


def gradient(
    value: Any, leading: tuple[int, ...], dim: int | None, dtype: Any, name: str = "grad_out", apart: bool = False
) -> Array:
    """Check a gradient of shape ``leading + (dim,)``; returns it as (n, dim), contiguous or with its rows `apart`."""
    array = _real(value, dtype, name)
    flat = array.reshape(-1, gradient_shape(array.shape, leading, dim, name))
    return row_wise(flat) if apart else read_only(flat)


def gradient_shape(shape: tuple[int, ...], leading: tuple[int, ...], dim: int | None, name: str) -> int:
    """Check the shape of a gradient; returns its dim."""
    dim = dim if dim is not None else (shape[-1] if shape else 0)
    if shape != (*leading, dim) or dim == 0:
        wanted = f"({', '.join(map(str, (*leading, dim or 'dim')))}){'' if dim else ', with dim at least 1'}"
        expected = f"{name} must have shape {wanted}, one row per looked-up vector, got {shape}"
        hint = _broadcast_hint(leading, shape) if shape[-1:] == (dim,) else ""
        raise ValueError(expected + hint)
    return dim


def _broadcast_hint(leading: tuple[int, ...], shape: tuple[int, ...]) -> str:
    """Explain the trap of ids of shape (B, 1), when the shapes suggest it."""
    given = shape[:-1]
    squeezed = tuple(extent for extent in leading if extent != 1)
    crossed = len(given) == 2 and given[0] == given[1] and given[:1] in (leading, leading[:1])
    if not crossed and not (1 in leading + given and squeezed == tuple(extent for extent in given if extent != 1)):
        return ""
    return (
        ".  Ids of shape (B, 1) give vectors of shape (B, 1, dim); against targets of shape (B, dim) they "
        "broadcast to (B, B, dim), which silently averages over the batch.  Use ids of shape (B,), or reshape "
        "the gradient"
    )


def sample_weights(value: Any, name: str = "per_sample_weights") -> Array:
    """Check that an array holds real numbers; whole ones become float64."""
    array = as_array(value, name)
    return floats(array.astype(np.float64) if array.dtype.kind in "iu" else array, None, name)


def floats(value: Any, dtype: Any, name: str) -> Array:
    """Check that an array holds real floats; returns it contiguous and in `dtype` (None keeps it)."""
    return read_only(_real(value, dtype, name))


def _real(value: Any, dtype: Any, name: str) -> Array:
    array = as_array(value, name)
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise TypeError(f"{name} must hold floats, got {array.dtype}; convert with .astype(np.float32)")
    if dtype is None:  # byte order is no precision
        dtype = array.dtype.newbyteorder("=") if array.dtype.itemsize > 2 else np.dtype(np.float32)
    return np.asarray(array, dtype)


def finite(array: Array, name: str) -> None:
    """Refuse NaN and infinity, naming the first."""
    bad = ~np.isfinite(array)
    if bad.any():
        where = tuple(int(index) for index in np.argwhere(bad)[0])
        place = f"row {where[0]}, column {where[1]}" if array.ndim == 2 else f"index {where[0]}"
        raise ValueError(f"{name} is {array[where]} at {place}, expected finite numbers; skip this step")


def mode(value: Any, weighted: bool) -> int:
    """Check a pooling mode; returns its number in the kernels."""
    if not isinstance(value, str) or value not in MODES:
        raise ValueError(f"mode must be one of {', '.join(map(repr, MODES))}, got {value!r}")
    if value == "max" and weighted:
        raise ValueError("mode='max' takes no per_sample_weights; leave them out, or use sum, mean or sqrtn")
    return MODES[value]


def padding(value: Any, num_rows: int) -> int:
    """Check `padding_idx`; returns -1 for none."""
    if value is None:
        return -1
    index = count(value, "padding_idx", least=0)
    if index >= num_rows:
        raise IndexError(f"padding_idx must be below num_rows = {num_rows}, got {index}")
    return index


def output(value: Any, shape: tuple[int, ...], dtype: Any, **sources: Array | None) -> Array:
    """Check an `out` argument, which must not lie where `sources` do."""
    array = ndarray(value, "out")
    if array.shape != shape:
        raise ValueError(f"out must have shape {shape}, got {array.shape}")
    if array.dtype != dtype:
        raise TypeError(f"out must be {np.dtype(dtype)}, got {array.dtype}")
    if not (array.flags.c_contiguous and array.flags.aligned and array.flags.writeable):
        raise ValueError("out must be a C-contiguous, aligned, writeable array; make one with np.empty")
    for name, source in sources.items():
        if source is not None and np.may_share_memory(array, source):
            raise ValueError(f"out must not share memory with {name}; pass another array")
    return array
