"""Checks of arguments that are not arrays: numbers, shapes, modes, optimizers.

Messages name the argument, what was expected, what came, and what to do.
"""

import math
import operator
import sys
from typing import Any

import numpy as np

from .rules import Rule

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
MODES = {"sum": 0, "mean": 1, "sqrtn": 2, "max": 3}


def count(value: Any, name: str, least: int = 1) -> int:
    """Check an integer such as `num_rows`, and return it."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {type(value).__name__} {value!r}") from None
    if isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be an integer, got a bool")
    if not least <= number < 2**63:
        raise ValueError(f"{name} must be at least {least} and below 2**63, got {number}")
    return number


def flag(value: Any, name: str) -> bool:
    """Check a bool, and return it."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def real(value: Any, name: str, least: float = -math.inf) -> float:
    """Check a finite number such as `alpha`, and return it."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.floating | np.integer):
        raise TypeError(f"{name} must be a number, got {type(value).__name__} {value!r}")
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        raise ValueError(f"{name} must be a number that float64 can hold, got one of {value.bit_length()} bits")
    if not (math.isfinite(value) and value >= least):
        floor = "" if least == -math.inf else f" and at least {least}"
        raise ValueError(f"{name} must be finite{floor}, got {value!r}")
    return float(value)


def positive(value: Any, name: str) -> float:
    """Check a finite number above zero such as `max_norm`, and return it."""
    number = real(value, name)
    if number <= 0:
        raise ValueError(f"{name} must be above zero, got {value!r}")
    return number


def norm_type(value: Any) -> float:
    """Check the p of a p-norm, and return it."""
    return math.inf if isinstance(value, float) and value == math.inf else positive(value, "norm_type")


def shape(value: Any) -> tuple[int, ...]:
    """Check the shape of a new array, and return it."""
    if not isinstance(value, tuple | list) or not value:
        raise TypeError(f"shape must be a tuple of integers such as (num_rows, dim), got {value!r}")
    return tuple(count(extent, f"shape[{i}]", least=0) for i, extent in enumerate(value))


def several(value: Any, name: str, what: str) -> list[Any]:
    """Check a list or tuple, and return a list."""
    if not isinstance(value, list | tuple):
        raise TypeError(f"{name} must be a list or tuple of {what}, got {type(value).__name__}")
    return list(value)


def size(num_rows: int, dim: int, dtype: np.dtype[Any]) -> None:
    """Check that a table's size can be addressed."""
    if num_rows * dim * dtype.itemsize >= 2**63:
        wanted = f"num_rows * dim = {num_rows} * {dim}"
        raise ValueError(f"{wanted} needs more bytes than an address can count; use fewer rows or a smaller dim")


def table_dtype(dtype: Any, name: str = "dtype") -> np.dtype[Any]:
    """Check the dtype of a table, and return it."""
    try:
        result = np.dtype("V" if dtype is None else dtype)  # np.dtype(None) is float64
    except TypeError:
        raise TypeError(f"{name} must be float32, float64 or float16, got {dtype!r}") from None
    if result not in (*FLOATS, np.dtype(np.float16)):
        got = "None" if dtype is None else result
        raise TypeError(f"{name} must be float32, float64 or float16, got {got}; convert with .astype(np.float32)")
    return result


def optimizer(value: Any, dtype: np.dtype[Any]) -> None:
    """Refuse an optimizer that is not a rule, and any optimizer for a float16 table."""
    if value is None:
        return
    if not isinstance(value, Rule):
        raise TypeError(f"optimizer must be a sparsembed rule such as se.SparseAdam(lr=1e-3), got {value!r}")
    if dtype not in FLOATS:
        raise TypeError(f"optimizer needs a float32 or float64 table, got {dtype}; float16 is for lookups and pooling")


def gradient_shape(shape: tuple[int, ...], leading: tuple[int, ...], dim: int | None, name: str) -> int:
    """Check the shape of a gradient, and return dim."""
    dim = dim if dim is not None else (shape[-1] if shape else 0)
    if shape != (*leading, dim) or dim == 0:
        wanted = f"({', '.join(map(str, (*leading, dim or 'dim')))}){'' if dim else ', with dim at least 1'}"
        expected = f"{name} must have shape {wanted}, one row per looked-up vector, got {shape}"
        hint = _broadcast_hint(leading, shape) if shape[-1:] == (dim,) else ""
        raise ValueError(expected + hint)
    return dim


def _broadcast_hint(leading: tuple[int, ...], shape: tuple[int, ...]) -> str:
    """Return a hint about ids of shape (B, 1) if the shapes suggest that mistake, else an empty string."""
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


def mode(value: Any, weighted: bool) -> int:
    """Check a pooling mode, and return the number that kernels use for it."""
    if not isinstance(value, str) or value not in MODES:
        raise ValueError(f"mode must be one of {', '.join(map(repr, MODES))}, got {value!r}")
    if value == "max" and weighted:
        raise ValueError("mode='max' takes no per_sample_weights; leave them out, or use sum, mean or sqrtn")
    return MODES[value]


def padding(value: Any, num_rows: int) -> int:
    """Check `padding_idx`, and return it; -1 for None."""
    if value is None:
        return -1
    index = count(value, "padding_idx", least=0)
    if index >= num_rows:
        raise IndexError(f"padding_idx must be below num_rows = {num_rows}, got {index}")
    return index


def changed() -> IndexError:
    """Return the error for ids that another thread changed between their check and their use.

    Kernels check the range of each id they read, so such a change cannot make them read outside of the table.
    """
    return IndexError(
        "ids were changed by another thread while their rows were read, and some were out of range; leave them as they "
        "are until the call returns, or pass a copy"
    )
