"""Gradients that are clipped in place: what may be scaled, each number once, and the factor."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np

from . import _check as check
from ._cpu import inputs
from ._frameworks import framework_of
from ._typing import Array


def listed(values: Any, name: str, what: str) -> list[Any]:
    """Check an iterable of several values, and return a list."""
    one = hasattr(values, "shape") or hasattr(values, "_instead")
    if one or isinstance(values, str | dict) or not isinstance(values, Iterable):
        advice = "; pass its values()" if isinstance(values, dict) else ""
        advice = "; for one array pass dense=[array]" if len(getattr(values, "shape", ())) else advice
        raise TypeError(f"{name} must be a list of {what}, got {check.kind_of(values)}{advice}")
    return list(values)


def each_once(gradients: Any, kind: Any) -> list[Any]:
    """Check one gradient of a class, or an iterable of them; return each once."""
    given = [gradients] if isinstance(gradients, kind) else listed(gradients, "gradients", kind.__name__)
    for i, gradient in enumerate(given):
        if not isinstance(gradient, kind):
            advice = "; arrays are for dense=" if hasattr(gradient, "shape") else ""
            raise TypeError(f"gradients[{i}] must be a {kind.__name__}, got {check.kind_of(gradient)}{advice}")
        if gradient._on_device:
            raise TypeError(f"gradients[{i}] is on a GPU, expected host memory; pass what its to_host() returns")
    return list({id(gradient): gradient for gradient in given}.values())


class Part:
    """The numbers of a dense gradient that no earlier gradient has: all of them, or those of a mask."""

    def __init__(self, array: Array, mask: Array | None = None) -> None:
        self.array, self.mask = array, mask

    def numbers(self) -> Array:
        """Return the numbers as one row."""
        found = self.array if self.mask is None else self.array[self.mask]
        return np.ascontiguousarray(found).reshape(1, -1)

    def scaling(self, factor: Any) -> Any:
        """Return the call that scales the numbers in place."""
        where = {} if self.mask is None else {"where": self.mask}
        return partial(np.multiply, self.array, factor, self.array, **where)


def parts_of(dense: Any) -> list[Part]:
    """Check dense gradients, which are scaled in place; return each number once, and leave out None."""
    found: dict[Any, Array] = {}
    for i, value in enumerate(listed(dense, "dense", "arrays")):
        if value is None:  # a parameter without a gradient
            continue
        name = f"dense[{i}]"
        if isinstance(value, np.generic | int | float | complex):
            raise TypeError(
                f"{name} is {check.kind_of(value)}, a number that cannot be written to; expected an array, such as "
                "np.array([number]), that is read afterwards"
            )
        framework_of(value).refuse_tracked(value, name, "pass p.grad")
        array = inputs.ndarray(value, name)
        if array.dtype not in check.FLOATS:
            error = check.not_floats(value, array, name, "float32 or float64")
            kept = "; keep the converted array, which is what is scaled" if array.ndim else ""
            raise TypeError(f"{error}{kept}")
        if array.size:
            inputs.in_place(array, name, "a copy")
            found.setdefault(_place(array), array)
    parts: list[Part] = []
    for array in found.values():
        others = [part.array for part in parts if np.shares_memory(part.array, array)]
        mask = _apart(array, others) if others else None
        if mask is None or mask.any():
            parts.append(Part(array, mask))
    return parts


def _place(array: Array) -> tuple[Any, ...]:
    """Return a key of the memory of an array, equal for two views of the same numbers."""
    how = (array.size,) if array.flags.c_contiguous else (array.shape, array.strides)
    return array.__array_interface__["data"][0], *how, array.dtype.char


def _apart(array: Array, others: list[Array]) -> Array:
    """Return which numbers of an array are numbers of no other array."""
    own, taken = _addresses(array), np.concatenate([_addresses(other).reshape(-1) for other in others])
    sizes = {each.dtype for each in (array, *others)}
    if len(sizes) > 1 or len(np.unique(np.append(taken, own.flat[0]) % array.itemsize)) > 1:
        raise ValueError("arrays in dense share bytes, but not as the same numbers; pass one of them")
    return ~np.isin(own, taken)


def _addresses(array: Array) -> Array:
    """Return the address of each number: 8 bytes a number, for arrays that overlap only."""
    found = np.full(array.shape, array.__array_interface__["data"][0], np.int64)
    for axis, (extent, stride) in enumerate(zip(array.shape, array.strides, strict=True)):
        steps = np.arange(extent, dtype=np.int64) * stride
        found += steps.reshape(-1, *[1] * (array.ndim - axis - 1))
    return found


def factor(most: float, array: Array) -> Any:
    """Return a factor in an array's dtype, rounded down so that rounding of the products cannot exceed the norm."""
    kind = array.dtype.type
    number = kind(most * (1 - 2.0 * float(np.finfo(kind).epsneg)))
    return number if number <= most else np.nextafter(number, kind(0))
