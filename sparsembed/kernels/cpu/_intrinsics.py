"""LLVM-level instructions of the CPU kernels: addresses, prefetch, streaming, sums of lanes.

Each has a plain-Python twin, used when NUMBA_DISABLE_JIT is set.
"""

import ctypes
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic

from ..._jit import inline

_I8, _I32 = ir.IntType(8), ir.IntType(32)
_LINE = ir.VectorType(_I32, 16)  # one 64-byte cache line
_LINE_BYTES = 64
LANES = 16


def _each_line(builder: Any, count: Any, body: Any) -> None:
    """Emit ``body(line * 64)`` for `count` lines: 16 lines at a time, then 8, 4, 2 and 1 for the rest.

    The code is unrolled, and its branches are predictable.  As a loop, the four prefetches
    of a 256-byte row take 3 ns more, a third of the time to sum the row.
    """
    kind = count.type
    with cgutils.for_range(builder, builder.lshr(count, kind(4))) as loop:
        for line in range(16):
            body(builder.add(builder.mul(loop.index, kind(16 * _LINE_BYTES)), kind(line * _LINE_BYTES)))
    for power in (8, 4, 2, 1):
        with builder.if_then(builder.icmp_unsigned("!=", builder.and_(count, kind(power)), kind(0))):
            start = builder.mul(builder.and_(count, kind(-2 * power)), kind(_LINE_BYTES))
            for line in range(power):
                body(builder.add(start, kind(line * _LINE_BYTES)))


@intrinsic
def row_address(typing, array, row):
    """Return the address of a row as an integer: no bounds check, no wraparound, no reference count."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        struct = context.make_array(signature.args[0])(context, builder, arguments[0])
        stride = cgutils.unpack_tuple(builder, struct.strides)[0]
        return builder.add(builder.ptrtoint(struct.data, stride.type), builder.mul(arguments[1], stride))

    return types.intp(array, types.intp), codegen


@intrinsic
def prefetch(typing, address, lines):
    """Prefetch `lines` cache lines from an address on."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _I8.as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer, _I32, _I32, _I32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")

        def fetch(offset: Any) -> None:
            line = builder.inttoptr(builder.add(arguments[0], offset), pointer)
            builder.call(function, [line, _I32(0), _I32(3), _I32(1)])

        _each_line(builder, arguments[1], fetch)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), codegen


@intrinsic
def prefetch_line(typing, address):
    """Prefetch the cache line of an address."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _I8.as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer, _I32, _I32, _I32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        builder.call(function, [builder.inttoptr(arguments[0], pointer), _I32(0), _I32(3), _I32(1)])
        return context.get_dummy_value()

    return types.void(types.intp), codegen


@intrinsic
def copy(typing, target, source, num_bytes):
    """Copy bytes from one address to another."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        to, since = (builder.inttoptr(each, _I8.as_pointer()) for each in arguments[:2])
        cgutils.raw_memcpy(builder, to, since, arguments[2], 1)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), codegen


@intrinsic
def stream(typing, target, source, num_bytes):
    """Copy whole cache lines with non-temporal stores; `target` must be the address of a line.

    A plain store first reads the cache line it overwrites.  For outputs larger than the cache
    these reads are a third of all traffic (gather of 100,000 x 64 float32: 1.25x faster).
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        to, since, num_bytes = arguments
        nontemporal = builder.module.add_metadata([_I32(1)])

        def copy_line(offset: Any) -> None:
            value = builder.load(builder.inttoptr(builder.add(since, offset), _LINE.as_pointer()))
            value.align = 1
            line = builder.inttoptr(builder.add(to, offset), _LINE.as_pointer())
            builder.store(value, line, align=_LINE_BYTES).set_metadata("nontemporal", nontemporal)

        _each_line(builder, builder.udiv(num_bytes, num_bytes.type(_LINE_BYTES)), copy_line)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), codegen


@intrinsic
def row_at(typing, address, dim, like):
    """Return an array view of `dim` numbers at an address, in the dtype of `like`; it does not own the memory."""
    kind = types.Array(like.dtype, 1, "C", readonly=True)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        struct = context.make_array(kind)(context, builder)
        item = context.get_data_type(kind.dtype)
        size = context.get_constant(types.intp, context.get_abi_sizeof(item))
        context.populate_array(
            struct,
            data=builder.inttoptr(arguments[0], item.as_pointer()),
            shape=cgutils.pack_array(builder, [arguments[1]]),
            strides=cgutils.pack_array(builder, [size]),
            itemsize=size,
            meminfo=None,
        )
        return struct._getvalue()

    return kind(types.intp, types.intp, like), codegen


@intrinsic
def lane_sum(typing, values):
    """Return the sum of a contiguous array whose length is a multiple of 16: 16 partial sums, then a tree.

    This order of additions is fixed, too, and the same on every CPU, but unlike a plain loop it vectorises.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = signature.args[0]
        struct = context.make_array(kind)(context, builder, arguments[0])
        vector = ir.VectorType(context.get_data_type(kind.dtype), LANES)
        total = cgutils.alloca_once_value(builder, ir.Constant(vector, None))
        pointer = builder.bitcast(struct.data, vector.as_pointer())
        size = struct.nitems.type
        with cgutils.for_range(builder, builder.udiv(struct.nitems, size(LANES))) as loop:
            part = builder.load(builder.gep(pointer, [loop.index]))
            part.align = kind.dtype.bitwidth // 8
            builder.store(builder.fadd(builder.load(total), part), total)
        lanes = builder.load(total)
        width = LANES
        while width > 1:  # add the upper half to the lower
            width //= 2
            low, high = ([_I32(start + lane) for lane in range(width)] for start in (0, width))
            mask = [ir.Constant(ir.VectorType(_I32, width), each) for each in (low, high)]
            lanes = builder.fadd(*(builder.shuffle_vector(lanes, lanes, each) for each in mask))
        return builder.extract_element(lanes, _I32(0))

    return values.dtype(values), codegen


@intrinsic
def tuple_at(typing, array, i, like):
    """Return row i of a contiguous array as a named tuple like `like`."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        struct = context.make_array(signature.args[0])(context, builder, arguments[0])
        start = builder.mul(arguments[1], cgutils.unpack_tuple(builder, struct.shape)[1])
        places = [builder.add(start, start.type(k)) for k in range(len(like))]
        values = [builder.load(builder.gep(struct.data, [place])) for place in places]
        return context.make_tuple(builder, signature.return_type, values)

    return like(array, types.intp, like), codegen


if config.DISABLE_JIT:

    def row_address(array, row):
        return array.__array_interface__["data"][0] + int(row) * array.strides[0]

    def prefetch(address, lines):
        pass

    def prefetch_line(address):
        pass

    def copy(target, source, num_bytes):
        ctypes.memmove(int(target), int(source), int(num_bytes))

    stream = copy

    def row_at(address, dim, like):
        scalar = {4: ctypes.c_float, 8: ctypes.c_double}[like.dtype.itemsize]
        return np.ctypeslib.as_array((scalar * int(dim)).from_address(int(address)))

    def lane_sum(values):
        lanes = values.reshape(-1, LANES).sum(axis=0)
        while len(lanes) > 1:
            lanes = lanes[: len(lanes) // 2] + lanes[len(lanes) // 2 :]
        return lanes[0]

    def tuple_at(array, i, like):
        return type(like)(*array[i, : len(like)])  # rows may be padded


@inline
def clear(row):
    """Set a row to zero; a loop measured faster than ``row[:] = 0``."""
    for c in range(row.shape[0]):
        row[c] = 0


@inline
def prefetch_bytes(address, num_bytes):
    """Prefetch the cache lines of some bytes, in a loop: little code, for kernels of few ids."""
    for offset in range(0, num_bytes, _LINE_BYTES):
        prefetch_line(address + offset)


@inline
def bits_of(number):
    """Return how many bits a number takes."""
    bits = 0
    while number > 0:
        number >>= 1
        bits += 1
    return bits


@inline
def overlap(a, b):
    """Whether the memory of two contiguous matrices overlaps."""
    start, other = row_address(a, 0), row_address(b, 0)
    return start < other + b.size * b.itemsize and other < start + a.size * a.itemsize


@inline
def last_at_most(values, value):
    """Return the index of the last of some increasing values that is at most `value`, or -1.

    ``np.searchsorted`` takes 0.4 s to compile, this loop 0.1 s.
    """
    low, high = 0, values.shape[0]
    while low < high:
        middle = (low + high) // 2
        if values[middle] <= value:
            low = middle + 1
        else:
            high = middle
    return low - 1
