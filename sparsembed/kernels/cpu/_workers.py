"""Threads that live in compiled code, and how a kernel hands itself to them.

A kernel that calls `enter` hands over the address of its own compiled function and its arguments; a worker
calls the same function.  Neither needs the interpreter.  All that they know of each other is in a box of numbers:

JOB is one number: which job there is, how many workers may join it, and how many have.  Who adds one to it, while it
is less than the places, has joined, and may read FUNCTION and ARGUMENTS.  The caller closes a job by taking the places
away, and then waits for those who have joined, and for nobody else.  So a worker that comes late finds nothing to
join and touches nothing.

A worker that finds no job spins for a while, then sleeps on one of CPython's own locks, which need no interpreter lock.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..._jit import kernel, routine
from ._atomic import add, exchange, load, replace, rest, store

# Offsets into the box, in bytes.  Numbers that different threads write are in different cache lines.
JOB, FUNCTION, ARGUMENTS, END = 0, 8, 16, 24  # END: workers return
LEFT = 128  # how many have left the job
BUSY, COUNT, BLOCKS, THREADS = 256, 264, 272, 280  # whether a caller has the box; workers there have been; of the job
EACH_THREAD, BYTES = 384, 128  # where the numbers of the first thread are, and how many bytes each has
ASLEEP, LOCK = 0, 8  # of a worker, by the order in which workers began
NEXT, AT = 64, 72  # of a thread of the job: blocks taken from its share; how many shares it has found empty
NUMBER, PLACES, MANY = 32, 16, (1 << 16) - 1  # shifts and mask of the parts of JOB

_acquire = types.ExternalFunction("PyThread_acquire_lock", types.int32(types.uintp, types.int32))
_release = types.ExternalFunction("PyThread_release_lock", types.void(types.uintp))
_I8, _I64 = ir.IntType(8), ir.IntType(64)
_BODY = ir.FunctionType(ir.VoidType(), [_I8.as_pointer(), _I64])


@intrinsic
def _call(typing, function, arguments, thread):
    """Call what `shared` has emitted, by its address, as a thread of the job."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        body = builder.inttoptr(arguments[0], _BODY.as_pointer())
        builder.call(body, [builder.inttoptr(arguments[1], _I8.as_pointer()), arguments[2]])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@kernel
def work(box, lock, spins):
    """Help with jobs until END; without a lock, only until there is nothing to do for `spins` turns.

    `lock`: address of a lock that is held, and released to wake this thread.
    """
    mine = box + EACH_THREAD
    if lock != 0:
        mine += add(box + COUNT, 1) * BYTES
        store(mine + LOCK, lock)
    seen, turns = load(box + JOB) >> NUMBER, 0
    if lock != 0:
        seen -= 1  # join the job that there is
    while load(box + END) == 0:
        job = load(box + JOB)
        if job >> NUMBER != seen and job & MANY < (job >> PLACES) & MANY:
            if replace(box + JOB, job, job + 1):
                seen = job >> NUMBER  # not twice: others may still come
                _call(load(box + FUNCTION), load(box + ARGUMENTS), (job & MANY) + 1)
                add(box + LEFT, 1)
            turns = 0
            continue
        turns += 1
        if turns <= spins:
            rest(0)
            continue
        if lock == 0:
            return
        turns = 0
        store(mine + ASLEEP, 1)
        now = load(box + JOB)  # opened before its caller saw that this thread sleeps?
        if (now == job and load(box + END) == 0) or exchange(mine + ASLEEP, 0) == 0:
            _acquire(lock, 1)  # who takes the mark away releases


@kernel
def wake(box, wanted):
    """Wake sleeping workers until `wanted` are awake."""
    count = load(box + COUNT)
    for k in range(count):
        if load(box + EACH_THREAD + k * BYTES + ASLEEP) == 0:
            wanted -= 1
    for k in range(count):
        mine = box + EACH_THREAD + k * BYTES
        if wanted > 0 and exchange(mine + ASLEEP, 0) == 1:
            _release(load(mine + LOCK))
            wanted -= 1


@routine
def open_job(box, function, arguments, blocks, places, awake):
    """Offer a job to `places` workers, of which `awake` are to be awake; return the box, or 0 if it is taken."""
    if exchange(box + BUSY, 1) != 0:
        return 0
    store(box + FUNCTION, function)
    store(box + ARGUMENTS, arguments)
    store(box + BLOCKS, blocks)
    store(box + THREADS, places + 1)
    store(box + LEFT, 0)
    for k in range(places + 1):
        store(box + EACH_THREAD + k * BYTES + NEXT, 0)
        store(box + EACH_THREAD + k * BYTES + AT, 0)
    store(box + JOB, ((load(box + JOB) >> NUMBER) + 1 << NUMBER) + (places << PLACES))
    if awake > 0:
        wake(box, awake)
    return box


@routine
def take(box, thread):
    """Return a block that no thread has taken: of this thread's share of the blocks, then of the shares after it.

    A share is contiguous, so that prefetches reach the core that needs them, and a thread finds in its cache what it
    had in an earlier call (2,048 rows in caches: 36 us; with blocks from one counter 53, on one thread 78).
    """
    threads, blocks = load(box + THREADS), load(box + BLOCKS)
    mine = box + EACH_THREAD + thread * BYTES
    empty = load(mine + AT)
    while empty < threads:
        share = thread + empty
        if share >= threads:
            share -= threads
        first = share * blocks // threads
        size = (share + 1) * blocks // threads - first
        there = box + EACH_THREAD + share * BYTES + NEXT
        if load(there) < size:
            block = add(there, 1)
            if block < size:
                return first + block
        empty += 1
        store(mine + AT, empty)
    return blocks


@routine
def close_job(box):
    """Let nobody join any more, and wait until all who have joined have left; return for how many turns."""
    job = load(box + JOB)
    joined = exchange(box + JOB, job >> NUMBER << NUMBER) & MANY
    turns = 0
    while load(box + LEFT) < joined:
        turns += 1
        rest(turns)
    store(box + BUSY, 0)
    return turns


def shared(builder: Any, counted: int, base: int) -> tuple[Any, Any]:
    """Emit a function that calls the function being built as another thread; return it, and a struct of arguments.

    The function being built gets the arguments of this call, but argument number `counted` is the sum of `base` and the
    number of the thread.
    """
    own = builder.function
    given = own.args[2:]  # after where to put the result, and where the exception
    kind = ir.LiteralStructType([each.type for each in given])
    place = cgutils.alloca_once(builder, kind)
    function = ir.Function(builder.module, _BODY, f"{own.name}.shared")
    function.linkage = "internal"
    inner = ir.IRBuilder(function.append_basic_block())
    source = inner.bitcast(function.args[0], kind.as_pointer())
    values = []
    for k, each in enumerate(given):
        builder.store(each, cgutils.gep_inbounds(builder, place, 0, k))
        values.append(inner.load(cgutils.gep_inbounds(inner, source, 0, k)))
    values[counted] = inner.add(function.args[1], _I64(base))
    inner.call(own, [*(inner.alloca(each.type.pointee) for each in own.args[:2]), *values], attrs=("noinline",))
    inner.ret_void()
    return function, place
