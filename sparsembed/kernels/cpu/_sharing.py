"""How threads share the blocks of a call: counters in an array, which each kernel has as its first argument."""

from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic

from ..._jit import inline
from ._atomic import add, load, rest
from ._intrinsics import row_address
from ._workers import close_job, open_job, shared, take

# Indices into the claims array: two counters, one cache line apart, then what is written once.
# BOX: address of the numbers of workers, or 0; BLOCKS: of the call; PLACES: how many workers may help; AWAKE: how
# many are to be awake; WAITED: for how many turns the caller has waited for others at the end.
NEXT, DONE, BOX, WRONG, BLOCKS, PLACES, AWAKE, WAITED, SLOTS = 0, 8, 16, 17, 18, 19, 20, 21, 24


@intrinsic
def enter(typing, claims):
    """Begin the work: offer this call of the kernel to workers, if there is a box.

    To be called first, in the kernel itself, whose first argument is `claims`.  Worker number k of the call is given a
    claims array that is said to be k numbers longer.  The caller begins here and waits in `leave`, both in compiled
    code, so an interrupt cannot come between the first block and the last.
    """
    opening = typing.resolve_value_type(open_job)
    opened = opening.get_call_type(typing, (types.int64,) * 6, {})

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        size = cgutils.unpack_tuple(builder, array.shape)[0]
        number = size.type
        box, *asked = (builder.gep(array.data, [number(each)]) for each in (BOX, BLOCKS, PLACES, AWAKE))
        given = builder.icmp_signed("!=", builder.load(box), number(0))
        with builder.if_then(builder.and_(given, builder.icmp_signed("==", size, number(SLOTS))), likely=False):
            # An array is passed field by field, and its length is the first number of its shape.
            length = context.data_model_manager[signature.args[0]].get_field_position("shape")
            handed = [builder.ptrtoint(each, number) for each in shared(builder, length, SLOTS)]
            job = [builder.load(box), *handed, *map(builder.load, asked)]
            builder.store(context.get_function(opening, opened)(builder, job), box)
        return context.get_dummy_value()

    return types.void(claims), codegen


@inline
def leave(claims):
    """Wait until every block is written, if this thread is the caller; return whether it is the caller."""
    if claims.shape[0] != SLOTS:
        return False
    if claims[BOX] != 0:
        claims[WAITED] = close_job(claims[BOX])
    return True


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
    if claims[BOX] != 0:
        return take(claims[BOX], claims.shape[0] - SLOTS)
    return add(row_address(claims, NEXT), 1)


@inline
def finish(claims):
    """Report one block of a phase as written; the blocks of a kernel need no report, for `leave` waits for workers."""
    add(row_address(claims, DONE), 1)


@inline
def join(claims):
    """Return the number of this thread among the threads of the call, from 0."""
    return claims.shape[0] - SLOTS


@inline
def wait(claims, num_blocks):
    """Wait until every block is written; the threads that claimed the blocks are running."""
    turns = 0
    while load(row_address(claims, DONE)) < num_blocks:
        turns += 1
        rest(turns)


if config.DISABLE_JIT:

    def enter(claims):
        pass
