"""Compiled functions without Numba's dispatcher, which takes 1 to 2 us to find the types of the arguments.

The functions that `entry_of` returns do not look at the types of their arguments, so the caller checks them first.
"""

from typing import Any

import numpy as np
from numba import typeof, types
from numba.core import config

from .._frameworks import framework_of
from .._typing import Array


def entry_of(kernel: Any, *kinds: Any) -> Any:
    """Return a kernel compiled for the given types of arguments; a tuple of numbers can stand for a named tuple."""
    if config.DISABLE_JIT:
        return kernel
    if kinds not in kernel.overloads:
        kernel.compile(kinds)
    return kernel.overloads[kinds].entry_point


def host_array(value: Any, tracked: bool = False) -> Array | None:
    """Return a NumPy array, or a view of a torch tensor, that kernels can read as it lies; else None."""
    array = value if type(value) is np.ndarray else framework_of(value).plain(value, tracked)
    if array is None:
        return None
    flags = array.flags
    return array if flags.c_contiguous and flags.aligned else None


def matrix_type(dtype: Any, dims: int = 2, readonly: bool = True) -> Any:
    """Return the Numba type of a C-contiguous array."""
    return types.Array(typeof(dtype).dtype, dims, "C", readonly=readonly)
