"""How threads share the blocks of a call: atomic counters, and spin-waits."""

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

# Indices into the claims array: three counters, one cache line apart, then two flags.
NEXT, DONE, MEMBERS, BEGUN, WRONG, SLOTS = 0, 8, 16, 24, 25, 32
_I32 = ir.IntType(32)
_SPINS = 1000  # not measured: longer than the rest of a block, shorter than a time slice of the scheduler
_PATIENCE = 50_000  # turns, about 20 ms; then the caller was interrupted, or its core is taken


@intrinsic
def _add_to(typing, claims, slot, value):
    """Atomically add to a shared counter and return the old value; sequentially consistent."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        struct = context.make_array(signature.args[0])(context, builder, arguments[0])
        pointer = builder.gep(struct.data, [arguments[1]])
        return builder.atomic_rmw("add", pointer, arguments[2], "seq_cst")

    return types.int64(claims, types.intp, types.int64), codegen


@intrinsic
def _rest(typing, turns):
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

    def _add_to(claims, slot, value):
        claims[slot] += value
        return claims[slot] - value

    def _rest(turns):
        time.sleep(0)


@inline
def enter(claims):
    """Begin the work (caller), or wait until the caller has begun (helper); return whether to work.

    The caller begins here and waits in `leave`, both in compiled code, so an interrupt cannot come between the first
    block and the last.  A helper has a claims array that is one number shorter.  If the caller does not begin in time,
    for example after an interrupt, the helper returns False and has written nothing.
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
    """Wait until every block is written, if this thread is the caller; return whether it is the caller."""
    if claims.shape[0] == SLOTS:
        wait(claims, num_blocks)
        return True
    return False


@inline
def within(i, num_rows, claims):
    """Return id i as a row to read; return 0 and set WRONG if it is out of range, changed after its check."""
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
    """Return the number of this thread among the threads of the call, from 0."""
    return _add_to(claims, MEMBERS, 1)


@inline
def wait(claims, num_blocks):
    """Wait until every block is written; the threads that claimed the blocks are running."""
    turns = 0
    while _add_to(claims, DONE, 0) < num_blocks:
        turns += 1
        _rest(turns)
