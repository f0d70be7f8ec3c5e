"""What an array is: zero-copy views of the caller's arrays, and results of the caller's kind.

No framework is imported to find out: an object can only be a torch tensor if torch has been
imported already.
"""

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def kind_of(value: object) -> str:
    """Return "torch", "jax" or "numpy" (everything else)."""
    for name, attribute in (("torch", "Tensor"), ("jax", "Array")):
        module = sys.modules.get(name)
        if module is not None and isinstance(value, getattr(module, attribute, ())):
            return name
    return "numpy"


def kind_of_either(weight: object, otherwise: str) -> str:
    """Return the kind of a table, or another argument's where the table is plain NumPy."""
    kind = kind_of(weight)
    return otherwise if kind == "numpy" else kind


def is_array(value: object) -> bool:
    """Whether a value is an array of one dimension or more, rather than a number or a list."""
    return getattr(value, "ndim", 0) > 0


def as_array(value: Any, name: str) -> Array:
    """View any array in host memory as a NumPy array, without a copy; lists become arrays."""
    if isinstance(value, np.ma.MaskedArray) or (isinstance(value, list | tuple) and any(map(_is_masked, value))):
        raise TypeError(f"{name} must not be a masked array: its mask would be ignored; fill it first")
    if isinstance(value, np.ndarray):
        return np.asarray(value)  # drops memmap and other subclasses
    if kind_of(value) == "torch":
        return _tensor(value, name)
    if hasattr(value, "__cuda_array_interface__"):
        raise TypeError(f"{name} is in CUDA memory, expected host memory; copy it to the host first")
    try:
        if hasattr(value, "__dlpack__") and not hasattr(value, "__array__"):
            return np.from_dlpack(value)
        return np.asarray(value)
    except ValueError as error:  # a ragged list
        raise ValueError(f"{name} must be an array, got a {type(value).__name__} that is not one: {error}") from None
    except (MemoryError, TypeError):
        raise
    except Exception as error:  # whatever an object's own conversion raises
        raise TypeError(
            f"{name} must be an array, got a {type(value).__name__} whose conversion raises "
            f"{type(error).__name__}: {error}; convert it with np.array"
        ) from error


def _is_masked(value: object) -> bool:
    return isinstance(value, np.ma.MaskedArray)


def _tensor(value: Any, name: str) -> Array:
    """View a tensor; one that only says that its numbers are to be negated or conjugated is copied as they are."""
    if value.device.type != "cpu":
        raise TypeError(f"{name} is on {value.device}, expected host memory; move it with .cpu()")
    if str(value.dtype) == "torch.bfloat16":
        raise TypeError(f"{name} is bfloat16, which NumPy does not have; convert with .float()")
    return np.asarray(value.detach().resolve_conj().resolve_neg())


def to_kind(result: Array, kind: str) -> Any:
    """Hand a fresh array over as the caller's kind of array, without a copy.

    Neither torch nor JAX knows read-only memory: such an array is copied.
    """
    if kind != "numpy" and not result.flags.writeable:
        result = result.copy()
    if kind == "torch":
        return sys.modules["torch"].from_numpy(result)
    if kind == "jax":
        return sys.modules["jax"].dlpack.from_dlpack(result)
    return result


def freeze(value: Any) -> Any:
    """Make an array, or the arrays in a list or tuple, read-only."""
    if isinstance(value, np.ndarray):
        value.setflags(write=False)
    elif isinstance(value, list | tuple):
        for each in value:
            freeze(each)
    return value


def read_only(array: Array) -> Array:
    """Return a contiguous, aligned, read-only view (a copy only where it is neither).

    Kernels take every input as read-only: one compiled version serves both kinds.
    """
    flags = array.flags
    if not (flags.c_contiguous and flags.aligned):
        array = np.require(array, requirements=["C", "A"])
    view = array.view()
    view.setflags(write=False)
    return view


def row_wise(array: Array) -> Array:
    """Return a matrix as a read-only view whose rows are contiguous (a copy only where they are not).

    What a model cuts out of larger arrays, such as the gradient of one of several stacked vectors, is one already.
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
    reach = array.itemsize  # of the elements along the axes so far
    for stride, extent in axes:
        if stride < reach:
            break
        reach += (extent - 1) * stride
    else:
        return False
    (inner, columns), (outer, rows) = axes if len(axes) == 2 else ((0, 0), (0, 0))
    if inner < array.itemsize:
        return True
    # Rows of a matrix may lie between each other: an element i rows further meets one that is j or j + 1 columns
    # further, or none.
    i = np.arange(1, min(rows, ((columns - 1) * inner + array.itemsize) // outer + 1))
    j = np.minimum(i * outer // inner, columns - 1)
    after = np.where(j + 1 < columns, (j + 1) * inner - i * outer, array.itemsize)
    return bool((np.minimum(i * outer - j * inner, after) < array.itemsize).any())
