"""Checks of arguments that are not arrays: numbers, shapes, modes, optimizers.

Messages name the argument, what was expected, what came, and what to do.
"""

import math
import operator
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from .rules import Rule

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
MODES = {"sum": 0, "mean": 1, "sqrtn": 2, "max": 3}
# By the mode of the bags: the number of each mode that a call may give.
CHOICES: dict[str | None, dict[str | None, int]] = {own: {None: n, own: n} for own, n in MODES.items()}
CHOICES[None] = {name: MODES[name or "sum"] for name in (None, *MODES)}


def kind_of(value: Any) -> str:
    """Return what a value is, for messages."""
    name = type(value).__name__
    return "None" if value is None else f"an {name}" if name[0] in "aeiouAEIO" or name == "ndarray" else f"a {name}"


def shown(value: Any) -> str:
    """Return a value for messages: what it is, where its repr may be long."""
    return f"{type(value).__name__} {value!r}" if isinstance(value, str | int | float | np.generic) else kind_of(value)


def is_sparse(value: Any) -> bool:
    """Whether a value is a sparse matrix of scipy, in any format."""
    return hasattr(value, "tocsr")


def count(value: Any, name: str, least: int = 1) -> int:
    """Check an integer such as `num_rows`, and return it."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {shown(value)}") from None
    if isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be an integer, got a bool")
    if not least <= number < 2**63:
        raise ValueError(f"{name} must be at least {least} and below 2**63, got {number}")
    return number


def flag(value: Any, name: str) -> bool:
    """Check a bool, and return it."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, got {shown(value)}")
    return bool(value)


def real(value: Any, name: str, least: float = -math.inf) -> float:
    """Check a finite number such as `alpha`, and return it."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.floating | np.integer):
        raise TypeError(f"{name} must be a number, got {shown(value)}")
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
        advice = "" if name == "dtype" else "; convert with .astype(np.float32)"
        raise TypeError(f"{name} must be float32, float64 or float16, got {got}{advice}")
    return result


def optimizer(value: Any, dtype: np.dtype[Any]) -> None:
    """Refuse an optimizer that is not a rule, and any optimizer for a float16 table."""
    if value is None:
        return
    if not isinstance(value, Rule):
        raise TypeError(f"optimizer must be a sparsembed optimizer such as se.SparseAdam(lr=1e-3), got {shown(value)}")
    if dtype not in FLOATS:
        raise TypeError(f"optimizer needs a float32 or float64 table, got {dtype}; float16 is for lookups and pooling")


def gradient_shape(shape: tuple[int, ...], leading: tuple[int, ...], dim: int | None, name: str) -> int:
    """Check the shape of a gradient, and return dim."""
    dim = dim if dim is not None else (shape[-1] if shape else 0)
    if shape != (*leading, dim) or dim == 0:
        extents = ", ".join(map(str, (*leading, dim or "dim"))) + ("" if leading else ",")
        wanted = f"({extents}){'' if dim else ', with dim at least 1'}"
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


def mode(value: Any, own: str | None = None, weighted: bool = False) -> str:
    """Check the mode of a call beside the mode of the bags; return the one that holds, "sum" if neither is given."""
    if value is not None and (not isinstance(value, str) or value not in MODES):
        raise ValueError(
            f"mode must be one of {', '.join(map(repr, MODES))}, or None for that of the bags, got {shown(value)}"
        )
    if value is not None and own not in (None, value):
        raise ValueError(f"mode must be {own!r}, as the bags were made with it, got {value!r}; leave it out")
    found = value or own or "sum"
    if found == "max" and weighted:
        raise ValueError("mode='max' takes no per_sample_weights; leave them out, or use sum, mean or sqrtn")
    return found


_WHOLE = "pass an array of whole numbers"
_INSTEAD: tuple[tuple[Callable[[Any], bool], str], ...] = (  # what to pass instead of a value
    (lambda value: isinstance(value, slice), "pass np.arange(start, stop)"),
    (lambda value: isinstance(value, set | frozenset | Mapping), "pass a list, such as list(ids)"),
    (lambda value: isinstance(value, Iterator), "pass list(ids)"),
    (is_sparse, "make bags of a sparse matrix with se.Bags.from_csr, or pass its indices"),
    (lambda value: isinstance(value, str | bytes), "rows have numbers; give each key the number of a row"),
)


def not_ids(value: Any, array: Any, name: str) -> TypeError:
    """Return the error for an argument that is no array of integers, with what to do about it."""
    kind, got = array.dtype.kind, str(array.dtype)
    if kind == "b":
        got, advice = ("a boolean mask" if array.ndim else "a bool"), "for a mask pass np.flatnonzero(mask)"
    elif array.ndim == 0 and kind in "OUS":  # no array, and nothing that NumPy makes an array of
        got, advice = kind_of(value), next((text for of, text in _INSTEAD if of(value)), _WHOLE)
    elif has_nulls(array):
        got = f"{got} with nulls (None or NaN)"
        advice = "drop or fill the nulls first, then convert with .astype(np.int64)"
    elif kind in "US":
        advice = "give each key a row number, such as np.unique(keys, return_inverse=True) does"
    else:
        advice = f"convert whole numbers with .astype(np.int64); {_WHOLE}" if kind in "fO" else _WHOLE
    return TypeError(f"{name} must be integers (int32, int64), got {got}; {advice}")


def has_nulls(array: Any) -> bool:
    """Whether an array holds None, NaN, or what pandas has for a null."""
    if array.dtype.kind in "fc":
        return bool(np.isnan(array).any())
    return array.dtype.kind == "O" and any(
        each is None or type(each).__name__ in ("NAType", "NaTType") or (isinstance(each, float) and math.isnan(each))
        for each in array.flat
    )


def not_bags(value: Any, name: str = "bags") -> TypeError:
    """Return the error for an argument that is no `Bags`, with the function that makes some of it."""
    make = "se.Bags(ids, offsets)"
    if isinstance(value, list | tuple) and any(type(each).__name__ == "Bags" for each in value):
        return TypeError(f"{name} must be one sparsembed.Bags here, got a list of them; call it for each")
    if isinstance(value, list | tuple | set | Iterator | Mapping):
        make = "se.Bags.from_lists(lists)"
    elif is_sparse(value):
        make = "se.Bags.from_csr(matrix.tocsr())"
    elif len(getattr(value, "shape", ())) == 2:
        make = "se.Bags.from_padded(ids, padding_idx=...)"
    return TypeError(f"{name} must be a sparsembed.Bags, got {kind_of(value)}; make one with {make}")


def not_a_table(shape: tuple[int, ...], name: str) -> ValueError:
    """Return the error for a weight of a wrong shape."""
    hint = "; for one number a row, such as a bias, pass bias[:, None]" if len(shape) == 1 else ""
    return ValueError(f"{name} must have shape (num_rows, dim) with dim at least 1, got {shape}{hint}")


def not_floats(value: Any, array: Any, name: str, kinds: str = "floats") -> TypeError:
    """Return the error for an argument that holds no real floats, with what to do about it."""
    got, advice = str(array.dtype), "convert with .astype(np.float32)"
    if array.dtype.kind == "O" and array.ndim == 0:
        value = array.item()  # the value may have become an array before
        got, advice = kind_of(value), "convert with .toarray()" if is_sparse(value) else "pass an array of floats"
    elif array.dtype.kind == "O" and has_nulls(array):
        got, advice = "objects with nulls (None or NaN)", "drop or fill the nulls first"
    return TypeError(f"{name} must hold {kinds}, got {got}; {advice}")


class RaggedError(ValueError):
    """A list whose parts do not make an array."""


def not_converted(error: Exception, value: Any, name: str) -> Exception:
    """Return the error for an argument whose conversion to an array has raised one."""
    got = f"{name} must be an array, got a {type(value).__name__}"
    if isinstance(error, ValueError):
        return RaggedError(f"{got} that is not one: {error}")
    return TypeError(f"{got} whose conversion raises {type(error).__name__}: {error}; convert it with np.array")


def not_gradient(value: Any) -> TypeError:
    """Return the error for an argument that is no `RowGradient`."""
    several = isinstance(value, list | tuple) and any(type(each).__name__ == "RowGradient" for each in value)
    advice = "add them with +" if several else "use update(ids, grad_out)"
    return TypeError(f"gradient must be a RowGradient, got {type(value).__name__}; {advice}")


def gradient_given(value: Any, name: str) -> None:
    """Refuse None in place of a gradient."""
    if value is None:
        raise TypeError(f"{name} is None, expected an array of floats: was requires_grad_() called on the rows?")


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
