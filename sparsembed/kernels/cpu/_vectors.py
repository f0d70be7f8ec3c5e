"""Copies of rows, and sums of rows in registers: a Numba type for vectors of 256, 128 or 64 bytes.

A plain loop over rows and columns loads and stores the running sum for each row: LLVM cannot keep the sum in
registers, since it does not know dim.  256 bytes are four AVX-512 registers.  With them the sum of bags whose rows
are in the L2 cache takes half the time (64 columns of float32: 3.6 ns a row instead of 7.8).  Each number is still
added in the same order, so the result has the same bits as the plain loop.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic, models, register_model

from ._elements import bytes_of, held, widen

WIDE, HALF, NARROW, _LINE = 256, 128, 64, 64  # bytes
_I16, _I32 = ir.IntType(16), ir.IntType(32)


class Lanes(types.Type):
    """The Numba type of `width` numbers in registers."""

    def __init__(self, dtype: Any, width: int) -> None:
        self.dtype, self.width = dtype, width
        super().__init__(name=f"Lanes({dtype}, {width})")


@register_model(Lanes)
class _Model(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Lanes) -> None:
        super().__init__(manager, kind, ir.VectorType(manager.lookup(kind.dtype).get_value_type(), kind.width))


def _zeros(num_bytes: int) -> Any:
    @intrinsic
    def zeros(typing, like):
        kind = Lanes(like.dtype, 8 * num_bytes // like.dtype.bitwidth)

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return ir.Constant(context.get_value_type(kind), None)

        return kind(like), codegen

    return zeros


wide, half, narrow = _zeros(WIDE), _zeros(HALF), _zeros(NARROW)


@intrinsic
def width(typing, lanes):
    """Return how many lanes there are, as a constant: to divide by the size of a number takes as long as 16 columns."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.get_constant(types.intp, lanes.width)

    return types.intp(lanes), codegen


def _spread(builder: Any, value: Any, width: int) -> Any:
    """Emit a vector with the same number in all lanes."""
    first = builder.insert_element(ir.Constant(ir.VectorType(value.type, width), None), value, _I32(0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(_I32, width), None))


def _mask(builder: Any, width: int, count: Any) -> Any:
    """Emit a mask of the first `count` lanes."""
    lanes = ir.Constant(ir.VectorType(_I32, width), list(range(width)))
    return builder.icmp_signed("<", lanes, _spread(builder, builder.trunc(count, _I32), width))


def _name(item: Any, width: int) -> str:
    bits = {_I16: "i16", ir.FloatType(): "f32", ir.DoubleType(): "f64"}[item]
    return f"v{width}{bits}.p0"


@intrinsic
def load_vector(typing, array, address, like, rest):
    """Return a vector as wide as `like`, or only the first `rest` lanes, from memory in the dtype of `array`."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        stored, size = signature.args[0].dtype, bytes_of(signature.args[0].dtype)
        raw = ir.VectorType(held(stored, context.get_value_type(like).element), like.width)
        pointer = builder.inttoptr(arguments[1], raw.as_pointer())
        if rest == types.none:
            value = builder.load(pointer, align=size)
        else:
            mask = _mask(builder, like.width, arguments[3])
            function = ir.FunctionType(raw, [pointer.type, _I32, mask.type, raw])
            name = f"llvm.masked.load.{_name(raw.element, like.width)}"
            masked = cgutils.get_or_insert_function(builder.module, function, name)
            value = builder.call(masked, [pointer, _I32(size), mask, ir.Constant(raw, None)])
        return widen(builder, value, stored)

    return like(array, types.intp, like, rest), codegen


@intrinsic
def fetch_vector(typing, address, like):
    """Prefetch the cache lines of a later `load_vector`, and one line more if the vector starts within a line.

    The number of instructions is constant: the branches of `prefetch` cost 15 % of a sum in the cache.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        byte = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, _I32, _I32, _I32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        size = like.width * like.dtype.bitwidth // 8
        for offset in (*range(0, size, _LINE), size - 1):
            place = builder.inttoptr(builder.add(arguments[0], arguments[0].type(offset)), byte)
            builder.call(function, [place, _I32(0), _I32(3), _I32(1)])
        return context.get_dummy_value()

    return types.void(types.intp, like), codegen


@intrinsic
def save_vector(typing, address, value, rest):
    """Write a vector, or only the first `rest` lanes."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes, align = arguments[1], value.dtype.bitwidth // 8
        pointer = builder.inttoptr(arguments[0], lanes.type.as_pointer())
        if rest == types.none:
            builder.store(lanes, pointer, align=align)
        else:
            mask = _mask(builder, value.width, arguments[2])
            function = ir.FunctionType(ir.VoidType(), [lanes.type, pointer.type, _I32, mask.type])
            name = f"llvm.masked.store.{_name(lanes.type.element, value.width)}"
            masked = cgutils.get_or_insert_function(builder.module, function, name)
            builder.call(masked, [lanes, pointer, _I32(align), mask])
        return context.get_dummy_value()

    return types.void(types.intp, value, rest), codegen


@intrinsic
def copy_row(typing, target, source, num_bytes):
    """Copy one byte or more, without a call of the C function, which takes longer: 32 rows of 256 bytes 0.2 us.

    The lines of a long row that is no whole number of lines are written where cache lines start (100 float32 of rows
    in the cache: 10 % faster), the last line where the row ends: it overlaps the line before.  A row shorter than a
    line is two halves that overlap.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        to, since, size = arguments
        index = size.type

        def move(count: int, offset: Any) -> None:
            item = ir.VectorType(ir.IntType(8), count).as_pointer()
            value = builder.load(builder.inttoptr(builder.add(since, offset), item), align=1)
            builder.store(value, builder.inttoptr(builder.add(to, offset), item), align=1)

        def move_short(count: int) -> None:
            with builder.if_else(builder.icmp_signed(">=", size, index(count))) as (enough, less):
                with enough:
                    move(count, index(0))
                    move(count, builder.sub(size, index(count)))
                with less:
                    if count > 1:
                        move_short(count // 2)

        with builder.if_else(builder.icmp_signed(">=", size, index(_LINE))) as (long, short):
            with long:
                over = builder.icmp_unsigned("!=", builder.and_(size, index(_LINE - 1)), index(0))
                move(_LINE, index(0))
                within = builder.select(over, builder.and_(to, index(_LINE - 1)), index(0))
                start, end = builder.sub(index(_LINE), within), builder.sub(size, index(_LINE - 1))
                with cgutils.for_range_slice(builder, start, end, index(_LINE), inc=True) as (offset, _):
                    move(_LINE, offset)
                with builder.if_then(over):
                    move(_LINE, builder.sub(size, index(_LINE)))
            with short:
                move_short(_LINE // 2)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), codegen


@intrinsic
def add(typing, a, b):
    """Add lane by lane."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fadd(*arguments)

    return a(a, b), codegen


@intrinsic
def product(typing, a, b):
    """Multiply lane by lane."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fmul(*arguments)

    return a(a, b), codegen


def _upper_to_lower(builder: Any, lanes: Any, width: int) -> Any:
    """Emit the upper half of a vector of `width` lanes, added to the lower half."""
    halves = [[_I32(start + lane) for lane in range(width // 2)] for start in (0, width // 2)]
    masks = [ir.Constant(ir.VectorType(_I32, width // 2), each) for each in halves]
    return builder.fadd(*(builder.shuffle_vector(lanes, lanes, mask) for mask in masks))


@intrinsic
def fold(typing, lanes, like):
    """Return the upper half of the lanes, added to the lower half; `like` is half as wide."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _upper_to_lower(builder, arguments[0], lanes.width)

    return like(lanes, like), codegen


@intrinsic
def lanes_sum(typing, lanes):
    """Return the sum of the lanes, as a tree."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value, width = arguments[0], lanes.width
        while width > 1:
            value, width = _upper_to_lower(builder, value, width), width // 2
        return builder.extract_element(value, _I32(0))

    return lanes.dtype(lanes), codegen


def _by_number(operation: str) -> Any:
    @intrinsic
    def by_number(typing, lanes, number):
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return getattr(builder, operation)(arguments[0], _spread(builder, arguments[1], lanes.width))

        return lanes(lanes, lanes.dtype), codegen

    return by_number


multiply, divide = _by_number("fmul"), _by_number("fdiv")


if config.DISABLE_JIT:

    def wide(like):
        return np.zeros(WIDE // like.itemsize, like.dtype)

    def half(like):
        return np.zeros(HALF // like.itemsize, like.dtype)

    def narrow(like):
        return np.zeros(NARROW // like.itemsize, like.dtype)

    def width(lanes):
        return len(lanes)

    def load_vector(array, address, like, rest):
        count = len(like) if rest is None else rest
        lanes = np.zeros(len(like), like.dtype)
        lanes[:count] = _at(address, count, np.float16 if array.dtype == np.uint16 else array.dtype)
        return lanes

    def fetch_vector(address, like):
        pass

    def save_vector(address, value, rest):
        count = len(value) if rest is None else rest
        _at(address, count, value.dtype)[:] = value[:count]

    def _at(address, count, dtype):
        import ctypes

        memory = (ctypes.c_char * int(count * np.dtype(dtype).itemsize)).from_address(int(address))
        return np.frombuffer(memory, dtype)

    def copy_row(target, source, num_bytes):
        import ctypes

        ctypes.memmove(int(target), int(source), int(num_bytes))

    def add(a, b):
        return a + b

    def product(a, b):
        return a * b

    def fold(lanes, like):
        return lanes[: len(like)] + lanes[len(like) :]

    def lanes_sum(lanes):
        while len(lanes) > 1:
            lanes = lanes[: len(lanes) // 2] + lanes[len(lanes) // 2 :]
        return lanes[0]

    def multiply(lanes, number):
        return lanes * number

    def divide(lanes, number):
        return lanes / number
