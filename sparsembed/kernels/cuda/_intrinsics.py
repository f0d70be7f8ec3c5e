"""LLVM-level instructions of the CUDA kernels: all of them are in this file.

`p` is a pointer to numbers and `i` an element of it.  *Lanes* are a tuple of equal numbers, 16 bytes of a row
(or one number where rows are not aligned), which one thread moves at once; `like` are lanes of zeros that say
how many.  Each has a plain-Python twin in `_simulated`.
"""

import inspect
import itertools
from typing import Any

from llvmlite import ir
from numba.cuda import cgutils, types
from numba.cuda.extending import intrinsic

from ...rules._dispatch import names_of, returned

_I32 = ir.IntType(32)
_SHARED = 3  # the address space
_numbers = itertools.count()


def _address(builder: Any, arguments: Any, kind: Any) -> Any:
    return builder.bitcast(builder.gep(arguments[0], [arguments[1]]), kind.as_pointer())


def _lanes_of(pointer: Any, like: Any) -> Any:
    return types.UniTuple(types.float32 if pointer.dtype == types.uint16 else pointer.dtype, len(like))


def _unpack(context: Any, builder: Any, vector: Any, half: bool) -> Any:
    """Lanes of a vector; of float16 given as words of two."""
    each = [builder.extract_element(vector, _I32(k)) for k in range(vector.type.count)]
    if half:
        word = each[0].type
        narrow = ir.IntType(16)
        if word.width == 32:
            each = [builder.trunc(builder.lshr(one, word(16 * k)), narrow) for one in each for k in range(2)]
        each = [builder.fpext(builder.bitcast(one, ir.HalfType()), ir.FloatType()) for one in each]
    return cgutils.pack_array(builder, each)


def _vector(builder: Any, each: list[Any]) -> Any:
    vector = ir.Constant(ir.VectorType(each[0].type, len(each)), ir.Undefined)
    for k, one in enumerate(each):
        vector = builder.insert_element(vector, one, _I32(k))
    return vector


def _alignment(pointer: Any, lanes: Any) -> int:
    return int(min(len(lanes) * pointer.dtype.bitwidth // 8, 16))


def _held(context: Any, pointer: Any, like: Any) -> tuple[Any, bool, int]:
    """Return the vector type of lanes in memory, whether the memory holds float16, and the bytes of the vector."""
    half = pointer.dtype == types.uint16
    if half and len(like) > 1:
        return ir.VectorType(_I32, len(like) // 2), True, 2 * len(like)
    item = context.get_data_type(pointer.dtype)
    return ir.VectorType(item, len(like)), half, len(like) * pointer.dtype.bitwidth // 8


@intrinsic
def load(typing, p, i, like):
    """Read lanes."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector, half, size = _held(context, p, like)
        value = builder.load(_address(builder, arguments, vector), align=min(size, 16))
        return _unpack(context, builder, value, half)

    return _lanes_of(p, like)(p, i, like), codegen


_LETTERS = {ir.FloatType(): ("f32", "f"), ir.DoubleType(): ("f64", "d"), _I32: ("u32", "r")}


@intrinsic
def load_once(typing, p, i, like):
    """Read lanes that this kernel does not write and no thread of this core needs again."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector, half, size = _held(context, p, like)
        if size != 16:
            value = builder.load(_address(builder, arguments, vector), align=min(size, 16))
            return _unpack(context, builder, value, half)
        name, letter = _LETTERS[vector.element]
        count = vector.count
        places = ", ".join(f"${k}" for k in range(count))
        text = f"ld.global.nc.L1::no_allocate.L2::128B.v{count}.{name} {{{places}}}, [${count}];"
        pointer = builder.gep(arguments[0], [arguments[1]])
        kind = ir.FunctionType(ir.LiteralStructType([vector.element] * count), [pointer.type])
        # Declares a read of memory: else the compiler may move the read before a check of bounds or a barrier.
        read = ir.InlineAsm(kind, text, f"={letter}," * count + "l", side_effect=True)
        found = builder.call(read, [pointer])
        value = _vector(builder, [builder.extract_value(found, k) for k in range(count)])
        return _unpack(context, builder, value, half)

    return _lanes_of(p, like)(p, i, like), codegen


def _values(context: Any, builder: Any, lanes: Any, kind: Any, item: Any) -> list[Any]:
    each = [builder.extract_value(lanes, k) for k in range(len(kind))]
    return [context.cast(builder, one, held, item) for one, held in zip(each, kind, strict=True)]


@intrinsic
def save(typing, p, i, value):
    """Write lanes."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector = _vector(builder, _values(context, builder, arguments[2], value, p.dtype))
        builder.store(vector, _address(builder, arguments, vector.type), align=_alignment(p, value))
        return context.get_dummy_value()

    return types.void(p, i, value), codegen


@intrinsic
def save_once(typing, p, i, value):
    """Write lanes that no kernel reads soon: the cache evicts them first."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        each = _values(context, builder, arguments[2], value, p.dtype)
        name, letter = _LETTERS[each[0].type]
        wide = min(16 * 8 // p.dtype.bitwidth, len(each))
        for start in range(0, len(each), wide):
            pointer = builder.gep(builder.gep(arguments[0], [arguments[1]]), [_I32(start)])
            part = each[start : start + wide]
            places = ", ".join(f"${k + 1}" for k in range(wide))
            places, vector = (f"{{{places}}}", f".v{wide}") if wide > 1 else (places, "")
            kind = ir.FunctionType(ir.VoidType(), [pointer.type, *(one.type for one in part)])
            text = f"st.global.cs{vector}.{name} [$0], {places};"
            builder.call(ir.InlineAsm(kind, text, "l" + f",{letter}" * wide, side_effect=True), [pointer, *part])
        return context.get_dummy_value()

    return types.void(p, i, value), codegen


def _by_lane(operation: str, number: bool) -> Any:
    @intrinsic
    def by_lane(typing, a, b):
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            other = context.cast(builder, arguments[1], b, a.dtype) if number else None
            each = [
                getattr(builder, operation)(
                    builder.extract_value(arguments[0], k),
                    other if number else builder.extract_value(arguments[1], k),
                )
                for k in range(len(a))
            ]
            return cgutils.pack_array(builder, each)

        return a(a, b), codegen

    return by_lane


add, multiply, divide = _by_lane("fadd", False), _by_lane("fmul", True), _by_lane("fdiv", True)


@intrinsic
def lanes_sum(typing, a):
    """Return the sum of lanes: the upper half is added to the lower half until one number is left."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        each = [builder.extract_value(arguments[0], k) for k in range(len(a))]
        while len(each) > 1:
            half = len(each) // 2
            each = [builder.fadd(each[k], each[k + half]) for k in range(half)]
        return each[0]

    return a.dtype(a), codegen


@intrinsic
def any_lane(typing, a):
    """Return whether `a` is true in any lane."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        found = builder.extract_value(arguments[0], 0)
        for k in range(1, len(a)):
            found = builder.or_(found, builder.extract_value(arguments[0], k))
        return found

    return a.dtype(a), codegen


def lanewise(function: Any, laned: int) -> Any:
    """Return a function that calls `function` for each lane of the first `laned` arguments; lanes share the rest."""

    def define(typing: Any, *kinds: Any) -> Any:
        each = tuple(kind[0] if k < laned else kind for k, kind in enumerate(kinds))
        called, count = typing.resolve_value_type(function), len(kinds[0])
        inner = typing.resolve_function_type(called, each, {})

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            call, results = context.get_function(called, inner), []
            context.add_linking_libs(getattr(call, "libs", ()))
            for lane in range(count):
                own = [builder.extract_value(v, lane) if k < laned else v for k, v in enumerate(arguments)]
                own = [context.cast(builder, v, a, b) for v, a, b in zip(own, each, inner.args, strict=True)]
                results.append(call(builder, own))
            return context.make_tuple(builder, signature.return_type, results)

        return types.Tuple([inner.return_type] * count)(*kinds), codegen

    forms = {  # an intrinsic names its arguments
        3: lambda typing, a, b, c: define(typing, a, b, c),  # noqa: PLW0108
        4: lambda typing, a, b, c, d: define(typing, a, b, c, d),  # noqa: PLW0108
        5: lambda typing, a, b, c, d, e: define(typing, a, b, c, d, e),  # noqa: PLW0108
    }
    return intrinsic(forms[len(inspect.signature(function).parameters)])


def _component(k: int) -> Any:
    @intrinsic
    def component(typing, results):
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            lanes = [builder.extract_value(builder.extract_value(arguments[0], j), k) for j in range(len(results))]
            return context.make_tuple(builder, signature.return_type, lanes)

        return types.Tuple([each[k] for each in results])(results), codegen

    return component


first, second = _component(0), _component(1)  # of the pair that each lane holds


@intrinsic
def load_slots(typing, p, i, stride, like, hp):
    """Return the slots of a rule, by lane; slots begin `stride` numbers apart."""
    count, item = len(names_of(hp, "slots")), p.dtype

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector = ir.VectorType(context.get_data_type(item), len(like))
        lanes: list[list[Any]] = [[] for _ in like]
        where = arguments[1]
        for _ in range(count):
            value = builder.load(_address(builder, (arguments[0], where), vector), align=_alignment(p, like))
            for k, lane in enumerate(lanes):
                lane.append(builder.extract_element(value, _I32(k)))
            where = builder.add(where, arguments[2])
        each = [context.make_tuple(builder, signature.return_type[0], lane) for lane in lanes]
        return context.make_tuple(builder, signature.return_type, each)

    return types.Tuple([types.Tuple([item] * count)] * len(like))(p, types.int64, types.int64, like, hp), codegen


@intrinsic
def save_slots(typing, p, i, stride, slots, hp):
    """Write slots as `load_slots` reads them."""
    count = returned(slots[0], hp, "step", "slots")

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        where = arguments[1]
        for k in range(count):
            each = [builder.extract_value(builder.extract_value(arguments[3], j), k) for j in range(len(slots))]
            each = [context.cast(builder, one, slots[j][k], p.dtype) for j, one in enumerate(each)]
            vector = _vector(builder, each)
            builder.store(vector, _address(builder, (arguments[0], where), vector.type), align=_alignment(p, slots))
            where = builder.add(where, arguments[2])
        return context.get_dummy_value()

    return types.void(p, types.int64, types.int64, slots, hp), codegen


@intrinsic
def load_row_slots(typing, p, i, hp):
    """Return the row slots of a rule, from element i on."""
    count = len(names_of(hp, "row_slots"))

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        places = [builder.gep(builder.gep(arguments[0], [arguments[1]]), [_I32(k)]) for k in range(count)]
        return context.make_tuple(builder, signature.return_type, [builder.load(place) for place in places])

    return types.Tuple([p.dtype] * count)(p, types.int64, hp), codegen


@intrinsic
def save_row_slots(typing, p, i, slots, hp):
    """Write row slots as `load_row_slots` reads them."""
    count = returned(slots, hp, "row", "row_slots")

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        for k in range(count):
            value = context.cast(builder, builder.extract_value(arguments[2], k), slots[k], p.dtype)
            builder.store(value, builder.gep(builder.gep(arguments[0], [arguments[1]]), [_I32(k)]))
        return context.get_dummy_value()

    return types.void(p, types.int64, slots, hp), codegen


@intrinsic
def tuple_at(typing, p, i, like):
    """Return the numbers from element i on, as a named tuple like `like`."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        places = [builder.gep(builder.gep(arguments[0], [arguments[1]]), [_I32(k)]) for k in range(len(like))]
        return context.make_tuple(builder, signature.return_type, [builder.load(place) for place in places])

    return like(p, types.int64, like), codegen


@intrinsic
def cast(typing, number, like):
    """Return `number` in the type of `like`."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.cast(builder, arguments[0], number, like)

    return like(number, like), codegen


@intrinsic
def pointer_at(typing, p, i):
    """The pointer to element i."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.gep(arguments[0], [arguments[1]])

    return p(p, types.int64), codegen


@intrinsic
def matrix(typing, p, rows, columns):
    """Return a view of numbers as an array of two dimensions."""
    kind = types.Array(p.dtype, 2, "C")

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        struct = context.make_array(kind)(context, builder)
        size = context.get_constant(types.intp, p.dtype.bitwidth // 8)
        context.populate_array(
            struct,
            data=arguments[0],
            shape=cgutils.pack_array(builder, arguments[1:]),
            strides=cgutils.pack_array(builder, [builder.mul(arguments[2], size), size]),
            itemsize=size,
            meminfo=None,
        )
        return struct._getvalue()

    return kind(p, types.int64, types.int64), codegen


def _atomic(operation: str) -> Any:
    @intrinsic
    def atomic(typing, p, i, value):
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            pointer = builder.gep(arguments[0], [arguments[1]])
            return builder.atomic_rmw(operation, pointer, arguments[2], "monotonic")

        return p.dtype(p, types.int64, p.dtype), codegen

    return atomic


# Atomic operations on integers; they return the old value.
atomic_add, atomic_min, atomic_exchange = _atomic("add"), _atomic("umin"), _atomic("xchg")


@intrinsic
def atomic_replace(typing, p, i, old, value):
    """Write `value` if the integer is `old`, else nothing (compare and swap)."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.gep(arguments[0], [arguments[1]])
        builder.cmpxchg(pointer, arguments[2], arguments[3], "monotonic", "monotonic")
        return context.get_dummy_value()

    return types.void(p, types.int64, p.dtype, p.dtype), codegen


def shared(count: int, name: str) -> Any:
    """Return a function that returns shared memory of the block, for `count` lanes or numbers."""

    @intrinsic
    def room(typing, like):
        lanes, item = (len(like), like[0]) if isinstance(like, types.BaseTuple) else (1, like)

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            kind = ir.ArrayType(context.get_data_type(item), lanes * count)
            # A number makes the name unique: one kernel may link two functions with shared memory of the same name.
            label = f"{name}_{next(_numbers)}"
            memory = cgutils.add_global_variable(builder.module, kind, label, _SHARED)
            memory.align, memory.initializer = 16, ir.Constant(kind, ir.Undefined)
            return builder.addrspacecast(memory, kind.element.as_pointer(), "generic")

        return types.CPointer(item)(like), codegen

    return room
