"""Begin and end of a call, and the arrays of its results.

On the CPU a call is just the framework of the input arrays; nothing has to be started or ended.
"""

import math
from typing import Any

import numpy as np

from .._frameworks import HOST, NUMPY, Framework, framework_of
from .._typing import Array
from . import memory
from .inputs import output


def begin(
    contents: Any = None, rows: Any = None, places: Any = (), like: Framework = NUMPY, **arrays: Any
) -> Framework:
    """Return the framework of the first array that has one other than NumPy, else `like`."""
    for given in arrays.values():
        value = given[0] if type(given) is list and given else given  # the first of several lookups decides
        if type(value) not in HOST and (framework := framework_of(value)) is not NUMPY:
            return framework
    return like


def end(call: Framework) -> None:
    """End a call."""


def result(
    call: Framework, out: Any, shape: tuple[int, ...], dtype: np.dtype[Any], **sources: Array | None
) -> tuple[Array, Any]:
    """Return the array to write to, and the object to return to the caller.

    It starts on a cache line if JAX adopts it, or if stores may bypass the cache: that takes 1.5 us.
    """
    if out is not None:
        return output(out, shape, dtype, **sources), out
    if call.takes_any and math.prod(shape) * dtype.itemsize < memory.LARGE:
        array = np.empty(shape, dtype)
    else:
        array = memory.empty(shape, dtype)
    return array, array


def finish(call: Framework, given: Any, out: Any = None) -> Any:
    """Return a result as an array of the caller's framework."""
    return given if out is not None or call is NUMPY else call.of_numpy(given)


def place_name(where: Any) -> str:
    """Return the words of a repr that say where arrays lie: none for host memory."""
    return ""


def synchronize(contents: Any) -> None:
    """Do nothing: on the CPU the work of a call is done when the call returns."""
