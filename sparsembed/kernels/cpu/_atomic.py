"""Numbers that threads share: atomic, sequentially consistent operations on an address, and a pause.

Each has a plain-Python twin, used when NUMBA_DISABLE_JIT is set.
"""

import ctypes
import os
import platform
import time
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic

_I32, _I64 = ir.IntType(32), ir.IntType(64)
_SPINS = 1000  # not measured: longer than the rest of a block, shorter than a time slice of the scheduler


def _pointer(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, _I64.as_pointer())


@intrinsic
def load(typing, address):
    """Return the number at an address."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(_pointer(builder, arguments[0]), "seq_cst", 8)

    return types.int64(types.int64), codegen


@intrinsic
def store(typing, address, value):
    """Write a number to an address."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store_atomic(arguments[1], _pointer(builder, arguments[0]), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def add(typing, address, value):
    """Add to the number at an address; return the old number."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.atomic_rmw("add", _pointer(builder, arguments[0]), arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def exchange(typing, address, value):
    """Write a number to an address; return the old number."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.atomic_rmw("xchg", _pointer(builder, arguments[0]), arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def replace(typing, address, old, new):
    """Write `new` to an address if `old` is there; return whether it was."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _pointer(builder, arguments[0])
        return builder.extract_value(builder.cmpxchg(place, *arguments[1:], "seq_cst", "seq_cst"), 1)

    return types.boolean(types.int64, types.int64, types.int64), codegen


@intrinsic
def rest(typing, turns):
    """Pause; after many turns yield the core, since the thread that is waited for may need it."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        nothing = ir.FunctionType(ir.VoidType(), [])
        if os.name == "posix":
            many = builder.icmp_signed(">", arguments[0], arguments[0].type(_SPINS))
            with builder.if_then(many, likely=False):
                give_way = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_I32, []), "sched_yield")
                builder.call(give_way, [])
        if platform.machine() in ("x86_64", "AMD64"):
            pause = cgutils.get_or_insert_function(builder.module, nothing, "llvm.x86.sse2.pause")
            builder.call(pause, [])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


if config.DISABLE_JIT:

    def load(address):
        return ctypes.c_int64.from_address(int(address)).value

    def store(address, value):
        ctypes.c_int64.from_address(int(address)).value = int(value)

    def exchange(address, value):
        old = load(address)
        store(address, value)
        return old

    def add(address, value):
        return exchange(address, load(address) + int(value))

    def replace(address, old, new):
        return load(address) == old and exchange(address, new) == old

    def rest(turns):
        time.sleep(0)
