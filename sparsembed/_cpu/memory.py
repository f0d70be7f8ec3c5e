"""Arrays aligned to a cache line.  JAX adopts such arrays without a copy."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

ALIGNMENT = 64
LARGE = 1 << 22  # results of at least this size are written with non-temporal stores, past the cache


def empty(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return an uninitialised C-ordered array that starts on a cache line."""
    kind = np.dtype(dtype)
    raw = np.empty(math.prod(shape) * kind.itemsize + ALIGNMENT, np.uint8)
    return np.ndarray(shape, kind, raw, -raw.__array_interface__["data"][0] % ALIGNMENT)


def zeros(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return a zeroed array whose pages take no memory until they are written to.

    NumPy asks Linux for huge pages for large arrays; without huge pages an update of an
    8-million-row table takes 1.5 times as long.
    """
    kind = np.dtype(dtype)
    raw = np.zeros(math.prod(shape) * kind.itemsize + ALIGNMENT, np.uint8)
    return np.ndarray(shape, kind, raw, -raw.__array_interface__["data"][0] % ALIGNMENT)


def owned(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the array if it is writeable, contiguous and starts on a cache line, else a copy that is."""
    if array.flags.c_contiguous and array.flags.writeable and array.__array_interface__["data"][0] % ALIGNMENT == 0:
        return array
    return copy(array)


def copy(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return a copy that starts on a cache line."""
    aligned = empty(array.shape, array.dtype)
    aligned[...] = array
    return aligned


def shown(nbytes: int) -> str:
    """Return a number of bytes as text, such as 15.6 KiB."""
    size, unit = float(nbytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size >= 1024:
            size, unit = size / 1024, larger
    return f"{size:.1f} {unit}"
