"""Read and write the stored numbers of a table: weights and state.  Only this file knows how a number is stored.

float32 and float64 numbers are stored in the dtype of the arithmetic.  A float16 table is read only: kernels get the
bits of the numbers as uint16, and read them as float32.  State is float32 or float64.

`load` and `save` handle one number.  Rows that are copied without arithmetic are copied as bytes, by `_intrinsics`;
`_vectors` reads vectors of numbers, and calls `widen` on them.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic

from ..._jit import inline
from ...rules._dispatch import names_of, returned

_HALF = types.uint16


def held(dtype: Any, item: Any) -> Any:
    """Return the LLVM type of stored numbers; `item` is the LLVM type of the arithmetic."""
    return ir.IntType(16) if dtype == _HALF else item


def bytes_of(dtype: Any) -> int:
    """Return the number of bytes of a stored number."""
    return int(dtype.bitwidth) // 8


def widen(builder: Any, value: Any, dtype: Any) -> Any:
    """Emit the conversion of a stored number, or of a vector of stored numbers, to the type of the arithmetic."""
    if dtype != _HALF:
        return value
    half, single = ir.HalfType(), ir.FloatType()
    if isinstance(value.type, ir.VectorType):
        half, single = (ir.VectorType(kind, value.type.count) for kind in (half, single))
    return builder.fpext(builder.bitcast(value, half), single)


@intrinsic
def _widened(typing, value):
    """Return a stored number, converted to the type of the arithmetic."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return widen(builder, arguments[0], signature.args[0])

    return (types.float32 if value == _HALF else value)(value), codegen


def _places(context: Any, builder: Any, kind: Any, array: Any, before: Any, count: int, *behind: Any) -> list[Any]:
    """Return pointers to ``array[before, k, *behind]`` for k below `count`."""
    struct = context.make_array(kind)(context, builder, array)
    indices = [[before, context.get_constant(types.intp, k), *behind] for k in range(count)]
    return [cgutils.get_item_pointer(context, builder, kind, struct, index) for index in indices]


def _load(context: Any, builder: Any, signature: Any, places: list[Any]) -> Any:
    item = signature.args[0].dtype
    values = [context.unpack_value(builder, item, place) for place in places]
    return context.make_tuple(builder, signature.return_type, values)


def _save(context: Any, builder: Any, item: Any, kinds: Any, value: Any, places: list[Any]) -> Any:
    for k, (place, kind) in enumerate(zip(places, kinds, strict=True)):
        number = context.cast(builder, builder.extract_value(value, k), kind, item)
        context.pack_value(builder, item, number, place)
    return context.get_dummy_value()


@intrinsic
def load_slots(typing, state, r, c, hp):
    """Return the slots of element (r, c), as a tuple; state (num_rows, slots, dim)."""
    count = len(names_of(hp, "slots"))

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, row, column, _ = arguments
        places = _places(context, builder, signature.args[0], array, row, count, column)
        return _load(context, builder, signature, places)

    return types.Tuple([state.dtype] * count)(state, types.intp, types.intp, hp), codegen


@intrinsic
def save_slots(typing, state, r, c, slots, hp):
    """Write the slots of element (r, c)."""
    count = returned(slots, hp, "step", "slots")

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, row, column, value, _ = arguments
        places = _places(context, builder, signature.args[0], array, row, count, column)
        return _save(context, builder, signature.args[0].dtype, signature.args[3], value, places)

    return types.void(state, types.intp, types.intp, slots, hp), codegen


@intrinsic
def load_row_slots(typing, row_state, r, hp):
    """Return the row slots of row r, as a tuple; row_state (num_rows, row_slots)."""
    count = len(names_of(hp, "row_slots"))

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        places = _places(context, builder, signature.args[0], arguments[0], arguments[1], count)
        return _load(context, builder, signature, places)

    return types.Tuple([row_state.dtype] * count)(row_state, types.intp, hp), codegen


@intrinsic
def save_row_slots(typing, row_state, r, slots, hp):
    """Write the row slots of row r."""
    count = returned(slots, hp, "row", "row_slots")

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        places = _places(context, builder, signature.args[0], arguments[0], arguments[1], count)
        return _save(context, builder, signature.args[0].dtype, signature.args[2], arguments[2], places)

    return types.void(row_state, types.intp, slots, hp), codegen


if config.DISABLE_JIT:

    def _widened(value):
        return np.float32(value.view(np.float16)) if value.dtype == np.uint16 else value

    def load_slots(state, r, c, hp):
        return tuple(state[r, k, c] for k in range(state.shape[1]))

    def save_slots(state, r, c, slots, hp):
        for k, value in enumerate(slots):
            state[r, k, c] = value

    def load_row_slots(row_state, r, hp):
        return tuple(row_state[r, k] for k in range(row_state.shape[1]))

    def save_row_slots(row_state, r, slots, hp):
        for k, value in enumerate(slots):
            row_state[r, k] = value


@inline
def load(array, r, c):
    """Return the number in column c of row r, in the type of the arithmetic."""
    return _widened(array[r, c])


@inline
def save(array, r, c, value):
    """Write a number to column c of row r."""
    array[r, c] = value


@inline
def clear_row(array, r):
    """Set row r to zero."""
    for c in range(array.shape[1]):
        array[r, c] = 0
