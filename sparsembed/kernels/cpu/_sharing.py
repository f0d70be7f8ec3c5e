"""How threads share the blocks of a call: atomic counters, and waiting for each other."""

import os
import platform
import time
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic

from ..._jit import inline
from ..._threads import BEGUN, DONE, MEMBERS, NEXT, SLOTS, WRONG

_I32 = ir.IntType(32)
_SPINS = 1000  # a guess: longer than a block that is nearly done, shorter than a turn of the scheduler
_PATIENCE = 50_000  # turns, some 20 ms: a caller that has not begun by then was interrupted, or has lost its core


@intrinsic
def _add_to(typing, claims, slot, value):
    """Add to a number that threads share, and return what it was; what others wrote before is visible after it."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        struct = context.make_array(signature.args[0])(context, builder, arguments[0])
        pointer = builder.gep(struct.data, [arguments[1]])
        return builder.atomic_rmw("add", pointer, arguments[2], "seq_cst")

    return types.int64(claims, types.intp, types.int64), codegen


@intrinsic
def _rest(typing, turns):
    """Wait a moment; after many turns let another thread have the core, which may be the one waited for."""

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

    def _add_to(claims, slot, value):
        claims[slot] += value
        return claims[slot] - value

    def _rest(turns):
        time.sleep(0)


@inline
def enter(claims):
    """Begin the work, if this is the caller, or wait until it has begun; return whether there is any.

    Nothing that the caller's thread does in Python, such as being interrupted, can stand between the first block and
    the last: it begins here, and waits in `leave`.  A helper, whose claims are one number shorter, leaves without
    having touched anything if the caller does not come.
    """
    if claims.shape[0] == SLOTS:
        claims[BEGUN] = 1
        return True
    turns = 0
    while _add_to(claims, BEGUN, 0) == 0:
        turns += 1
        if turns > _PATIENCE:
            return False
        _rest(turns)
    return True


@inline
def leave(claims, num_blocks):
    """Wait until every block is written, if this is the caller; return whether it is."""
    if claims.shape[0] == SLOTS:
        wait(claims, num_blocks)
        return True
    return False


@inline
def within(i, num_rows, claims):
    """Return id i as a row to read: 0, and a note of it, if somebody has changed it since it was checked."""
    r = np.uintp(i)
    if r >= np.uintp(num_rows):
        claims[WRONG] = 1
        return np.uintp(0)
    return r


@inline
def claim(claims):
    """Return the next block that no thread has taken."""
    return _add_to(claims, NEXT, 1)


@inline
def finish(claims):
    """Report one block as written."""
    _add_to(claims, DONE, 1)


@inline
def join(claims):
    """Return this thread's number among those that work on the call."""
    return _add_to(claims, MEMBERS, 1)


@inline
def wait(claims, num_blocks):
    """Wait until every block is written: threads that run are at work on them."""
    turns = 0
    while _add_to(claims, DONE, 0) < num_blocks:
        turns += 1
        _rest(turns)
