"""Checks of arrays in host memory, and the facts about a weight that every call uses."""

from typing import Any, NamedTuple

import numpy as np

from .. import _check as check
from .._frameworks import as_array, framework_of
from .._typing import Array
from ..kernels.cpu import few
from ..kernels.cpu._rows import NEAR_BYTES
from ..kernels.cpu.sort import first_outside
from .blocks import lines_of
from .views import overlaps, read_only, row_wise

IDS = frozenset({np.dtype(np.int32), np.dtype(np.int64)})
_HALF = np.dtype(np.float16)
_LARGEST = np.uint64(2**63 - 1)


class Table(NamedTuple):
    """A checked weight, and facts about it that are computed once."""

    array: Array  # (num_rows, dim), which updates change
    read: Array  # the same memory read-only, float16 as uint16: one compiled kernel serves all
    lines: int  # cache lines of a row to prefetch
    fetch: int  # the same for lookups: none where the table lies in the cache
    by_row: bool  # whether each row is contiguous
    result: np.dtype[Any]  # dtype of results
    num_rows: int
    dim: int
    dtype: np.dtype[Any]


def table_of(array: Array) -> Table:
    """Return the `Table` of a checked weight."""
    half = array.dtype == _HALF
    read = array.view(np.uint16) if half else array.view()
    read.flags.writeable = False
    by_row = array.strides[1] == array.itemsize or array.shape[1] == 1
    result = np.dtype(np.float32) if half else array.dtype
    num_rows, dim = array.shape
    lines = lines_of(array)
    fetch = lines if array.nbytes > NEAR_BYTES else 0
    return Table(array, read, lines, fetch, by_row, result, num_rows, dim, array.dtype)


def weight(value: Any, name: str = "weight", writeable: bool = False) -> Table:
    """Check a (num_rows, dim) array; return the `Table`."""
    return table_of(matrix(value, name, writeable))


def matrix(value: Any, name: str = "weight", writeable: bool = False) -> Array:
    """Check a (num_rows, dim) array; return a view of the caller's memory."""
    array = ndarray(value, name) if writeable else as_array(value, name)
    if array.dtype.kind == "O":
        raise check.not_floats(value, array, name, "float32, float64 or float16")
    check.table_dtype(array.dtype, f"{name}.dtype")
    if array.ndim != 2 or array.shape[1] == 0:
        raise check.not_a_table(array.shape, name)
    if not array.flags.aligned:
        raise ValueError(f"{name} must be aligned to its items; copy it with np.require({name}, requirements='A')")
    if writeable:
        if array.dtype not in check.FLOATS:
            raise TypeError(f"{name} is float16, which is for lookups and pooling; train a float32 table")
        in_place(array, name, "a writeable array or a copy")
    return array


def in_place(array: Array, name: str, instead: str) -> None:
    """Refuse a table that cannot be updated in place."""
    if not array.flags.writeable:
        raise ValueError(f"{name} is read-only, but is updated in place; pass {instead}")
    if overlaps(array):
        raise ValueError(f"{name} uses some memory for two elements, so its rows cannot differ; pass {instead}")


def check_writeable(table: Table) -> None:
    """Refuse a table whose weight has been made read-only after the table was made."""
    if not table.array.flags.writeable:
        in_place(table.array, "the table", "a writeable array or a copy")


def check_trainable(table: Table) -> None:
    """Refuse a table whose weight cannot be updated in place."""
    in_place(table.array, "the table", "a writeable array or a copy")


def ndarray(value: Any, name: str) -> Array:
    """Check an array that is written to, and return it; an object that gives out copies would not see the writes."""
    if isinstance(value, list | tuple):
        raise TypeError(f"{name} is written to in place, so it must be an array, got a {type(value).__name__}")
    array = as_array(value, name)
    own = isinstance(value, np.ndarray) or not array.size or (array.ndim == 0 and array.dtype.kind != "f")
    if not own and _address(array) != _address(as_array(value, name)):
        # Two views of the same memory have one address; two copies that are both alive have two.
        raise TypeError(
            f"{name} is written to in place, but a {type(value).__name__} hands out copies of its memory; pass the "
            "array itself, or write a copy back where it came from"
        )
    return array


def hands_out_copies(value: Any) -> bool:
    """Whether a given array would not see what is written to the array that was made of it."""
    try:
        ndarray(value, "weight")
    except TypeError:
        return True
    return False


def _address(array: Array) -> int:
    return int(array.__array_interface__["data"][0])


def id_array(value: Any, name: str = "ids") -> Array:
    """Check the dtype of ids, and return an int32 or int64 array of any shape; other integers are copied to int64."""
    try:
        array = as_array(value, name)
    except check.RaggedError as error:
        raise ValueError(f"{error}; lists of different lengths are bags: se.Bags.from_lists(lists)") from None
    if array.dtype in IDS:
        return array
    if array.dtype.kind in "iu":
        return _widened(array, name)
    if array.size == 0 and isinstance(value, list | tuple):
        return array.astype(np.int64)  # np.asarray([]) is float64
    if array.dtype.kind == "O" and array.size and all(type(each) is int for each in array.flat):
        raise IndexError(f"{name} must be below 2**63, got {max(array.flat, key=abs)}")
    raise check.not_ids(value, array, name)


def _widened(array: Array, name: str) -> Array:
    """Return other integers than int32 and int64 as int64."""
    large = array > _LARGEST if array.dtype.kind == "u" and array.dtype.itemsize == 8 else np.zeros(0, bool)
    if large.any():
        position = int(np.argmax(large))
        where = _index(position, array.shape)
        raise IndexError(f"{name}[{where}] is {array.flat[position]}, expected a number below 2**63")
    return array.astype(np.int64)


def _index(position: int, shape: tuple[int, ...]) -> str:
    """Return the index of a position in a flattened array, as in brackets."""
    return ", ".join(str(index) for index in np.unravel_index(position, shape)) if shape else "()"


def ids(value: Any, name: str = "ids") -> tuple[Array, tuple[int, ...]]:
    """Check the dtype of ids; return flat read-only ids, and their shape."""
    array = value if type(value) is np.ndarray and value.dtype in IDS else id_array(value, name)
    if array.ndim != 1 or not (array.flags.c_contiguous and array.flags.aligned):
        return read_only(array).reshape(-1), array.shape
    flat = array.view()
    flat.setflags(write=False)
    return flat, array.shape


def in_range(flat: Array, num_rows: int, name: str, shape: tuple[int, ...]) -> None:
    """Refuse ids outside [0, num_rows); the message names the first one."""
    position = first_outside(flat, num_rows)
    if position >= 0:
        if 0 <= (found := int(flat[position])) < num_rows:
            raise IndexError(
                f"{name} were changed by another thread while they were checked, and some were out of range; leave "
                "them as they are until the call returns, or pass a copy"
            )
        raise IndexError(
            f"{name}[{_index(position, shape)}] is {found}, expected 0 <= id < {num_rows} (num_rows); "
            "correct the id, or use a larger table"
        )


def flat_ids(value: Any, num_rows: int, name: str = "ids") -> tuple[Array, tuple[int, ...]]:
    """Check the dtype and range of ids; return flat read-only ids, and their shape."""
    flat, shape = ids(value, name)
    in_range(flat, num_rows, name, shape)
    return flat, shape


def offsets(value: Any, n: int) -> Array:
    """Check the offsets of bags of n ids; return an int64 copy."""
    given = value if type(value) is np.ndarray and value.dtype in IDS else id_array(value, "offsets")
    if given.ndim == 1 and len(given) and given.flags.c_contiguous and given.flags.aligned:
        ends = np.empty(len(given), np.int64)
        if few.copy_offsets(given, n, ends):
            ends.setflags(write=False)
            return ends
    ends = given.astype(np.int64)
    if ends.ndim != 1 or len(ends) == 0:
        raise ValueError(f"offsets must have shape (num_bags + 1,), got {ends.shape}")
    if ends[0] != 0:
        raise ValueError(f"offsets must start at 0, got offsets[0] = {ends[0]}")
    down = ends[1:] < ends[:-1]
    if down.any():
        at = int(np.argmax(down))
        raise ValueError(f"offsets must not decrease, got {ends[at]} then {ends[at + 1]} at position {at + 1}")
    if ends[-1] != n:
        raise ValueError(
            f"offsets must end at len(ids) = {n}, got {ends[-1]}; they have num_bags + 1 entries, "
            "the last being the end of the last bag"
        )
    ends.flags.writeable = False
    return ends


def gradient(value: Any, leading: tuple[int, ...], dim: int | None, dtype: Any, name: str = "grad_out") -> Array:
    """Check a gradient of shape ``leading + (dim,)``; return an (n, dim) view or copy with contiguous rows."""
    if type(value) is not np.ndarray:
        check.gradient_given(value, name)
        framework_of(value).refuse_tracked(value, name)
    array = _real(value, dtype, name)
    dim = check.gradient_shape(array.shape, leading, dim, name)
    return row_wise(array if array.ndim == 2 else array.reshape(-1, dim))


def sample_weights(value: Any, dtype: Any = None, name: str = "per_sample_weights") -> Array:
    """Check per-sample weights; return floats, in `dtype` if given.  Integers become float64."""
    array = as_array(value, name)
    return floats(array.astype(np.float64) if array.dtype.kind in "iu" else value, dtype, name)


def floats(value: Any, dtype: Any, name: str) -> Array:
    """Check that an array holds real floats; return a contiguous array in `dtype` (None: float32 or float64)."""
    return read_only(_real(value, dtype, name))


def _real(value: Any, dtype: Any, name: str) -> Array:
    array = value if type(value) is np.ndarray else as_array(value, name)
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise check.not_floats(value, array, name)
    if dtype is None:  # at least float32, in the native byte order
        dtype = array.dtype.newbyteorder("=") if array.dtype.itemsize > 2 else np.dtype(np.float32)
    return array if array.dtype == dtype else np.asarray(array, dtype)


def finite(array: Array, name: str) -> None:
    """Refuse NaN and infinity; the message names the first one."""
    bad = ~np.isfinite(array)
    if bad.any():
        where = tuple(int(index) for index in np.argwhere(bad)[0])
        place = f"row {where[0]}, column {where[1]}" if array.ndim == 2 else f"index {where[0]}"
        raise ValueError(f"{name} is {array[where]} at {place}, expected finite numbers; skip this step")


def output(value: Any, shape: tuple[int, ...], dtype: Any, **sources: Array | None) -> Array:
    """Check an `out` argument, which must not share memory with `sources`; return a view."""
    framework_of(value).refuse_tracked(value, "out", "pass a tensor that does not")
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
