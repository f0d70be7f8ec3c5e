"""Run kernels on several threads, without Numba's threading layer.

A kernel is called by every thread with the same arguments and claims blocks of work from a
shared counter until none is left.  Numba's own layers abort the process when two Python
threads call at once (workqueue) or end a forked child (omp); these threads do neither, start
in about 30 us and balance themselves when one core is busy elsewhere.  Blocks never depend
on the number of threads, so neither do results.
"""

import contextlib
import ctypes
import functools
import os
import signal
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np
from numba.core import config
from numba.core.compiler_lock import global_compiler_lock
from numba.np.ufunc import parallel

# Slots of the claims array: counters, one cache line apart; and what is written once.
NEXT, DONE, MEMBERS, BEGUN, WRONG, SLOTS = 0, 8, 16, 24, 25, 32


def _unknown_core() -> int:
    return -1


_core: Callable[[], int] = _unknown_core
if hasattr(os, "sched_setaffinity"):  # PyDLL: a call that let go of the interpreter would lose it to a worker
    _core = getattr(ctypes.PyDLL(None), "sched_getcpu", _unknown_core)


class Job(NamedTuple):
    """A kernel to run, as ``kernel(claims, num_blocks, *arguments)``; see `run`."""

    kernel: Callable[..., None]
    num_blocks: int
    arguments: tuple[Any, ...]
    kept: Any = None


class _Batch:
    """Jobs of one caller, which any thread that is free helps with, in order; keeps their arguments alive.

    Parameters
    ----------
    calls : list of (kernel, arguments)
        Of the jobs that threads can share.
    kept
        Whatever must live as long.
    """

    def __init__(self, calls: list[tuple[Callable[..., None], tuple[Any, ...]]], kept: Any) -> None:
        self.calls, self.kept = calls, kept
        self.over = False  # the caller has finished, or was interrupted: helpers leave

    def work(self) -> None:
        """Help with the jobs."""
        for kernel, arguments in self.calls:
            if not self.over:
                kernel(*arguments)

    def withdraw(self) -> None:
        """End the help: where nobody was free, nothing keeps the arguments alive."""
        self.over = True
        while self in _jobs:
            with contextlib.suppress(ValueError):
                _jobs.remove(self)


class _Worker(threading.Thread):
    """A thread that takes jobs, and sleeps while there are none."""

    def __init__(self) -> None:
        super().__init__(name="sparsembed", daemon=True)
        self.wake = threading.Lock()  # released to wake the thread, also while it is awake: then it looks once more
        self.busy = True
        self.avoided = -1

    def avoid(self, core: int) -> None:
        """Keep off a core, the caller's.

        Linux 6.18 otherwise wakes a thread on the core of its waker more often than not and lets both
        share it for milliseconds: two threads then took as long as one.
        """
        if core == self.avoided or self.native_id is None:
            return
        self.avoided = core
        with contextlib.suppress(OSError):
            if others := os.sched_getaffinity(os.getpid()) - {core}:
                os.sched_setaffinity(self.native_id, others)

    def run(self) -> None:
        _workers[self] = None  # here, too: whoever started the thread may have been interrupted
        while True:
            # A kernel that does not compile raises in the caller, too; and another may have taken the job.
            with contextlib.suppress(Exception):
                self.wake.acquire()
                self.busy = True
                while _jobs:
                    _jobs.pop().work()
            self.busy = False


_jobs: list[_Batch] = []  # appended to by callers; jobs that are done do nothing when called
_workers: dict[_Worker, None] = {}


def num_threads() -> int:
    """Return what Numba was told (NUMBA_NUM_THREADS, set_num_threads), without starting its threads."""
    if config.DISABLE_JIT:
        return 1  # plain Python has no atomic counters
    if getattr(parallel, "_is_initialized", False):
        return int(numba.get_num_threads())
    return int(config.NUMBA_NUM_THREADS)


def run(kernel: Callable[..., None], num_blocks: int, *arguments: Any, kept: Any = None) -> bool:
    """Call ``kernel(claims, num_blocks, *arguments)`` on up to `num_threads` threads; return once all blocks are done.

    The case of one job of `run_all`.  All blocks are written, or none: the call into compiled code is what begins them,
    and it comes back when the last is done, whichever threads work on them.  So an interrupt or any other exception is
    raised before or after.

    Parameters
    ----------
    kernel : compiled function
    num_blocks : int
    arguments
        The rest of its arguments.
    kept
        What the kernel knows by address only; kept alive as long as any thread may look at it.

    Returns
    -------
    bool
        Whether the kernel met ids out of range; see `kernels.cpu._sharing.within`.
    """
    claims = np.zeros(SLOTS, np.int64)
    if helpers := _helpers(kernel, num_blocks):  # written out: a list of one job takes 7 us more
        batch = _Batch([(kernel, (claims[:-1], num_blocks, *arguments))], kept)  # shorter: a helper's; see `enter`
        try:
            _ask(helpers, batch)
            kernel(claims, num_blocks, *arguments)
        finally:
            batch.withdraw()
    else:
        kernel(claims, num_blocks, *arguments)
    return bool(claims[WRONG])


def run_all(jobs: list[Job]) -> list[bool]:
    """Run kernels one after the other, as `run` does each of them; helpers are woken once for all.

    A job starts when all blocks of the one before it are done, so it may use what that has written.  Each is done as
    a whole or not at all; an exception that is raised between two of them leaves the first ones done.

    Parameters
    ----------
    jobs : list of Job
        Those of one block are the caller's alone.

    Returns
    -------
    list of bool
        Of each job, whether its kernel met ids out of range.
    """
    claims = [np.zeros(SLOTS, np.int64) for _ in jobs]
    helpers = [_helpers(job.kernel, job.num_blocks) for job in jobs]
    batch = _Batch(
        [
            (job.kernel, (own[:-1], job.num_blocks, *job.arguments))
            for job, own, shared in zip(jobs, claims, helpers, strict=True)
            if shared
        ],
        jobs,
    )
    try:
        if batch.calls:
            _ask(max(helpers), batch)
        for job, own in zip(jobs, claims, strict=True):
            job.kernel(own, job.num_blocks, *job.arguments)
    finally:
        batch.withdraw()
    return [bool(own[WRONG]) for own in claims]


def _helpers(kernel: Callable[..., None], num_blocks: int) -> int:
    """How many threads can help: none while the kernel is not compiled, which the caller does alone."""
    if num_blocks <= 1 or not getattr(kernel, "overloads", True):
        return 0
    return min(num_threads(), num_blocks) - 1


def _ask(helpers: int, batch: _Batch) -> None:
    """Offer jobs to `helpers` threads: sleeping ones, new ones up to that number, or the next to be free."""
    _jobs.extend([batch] * helpers)
    core = _core()
    for worker in sorted(_workers, key=lambda worker: worker.busy)[:helpers]:
        worker.avoid(core)
        with contextlib.suppress(RuntimeError):  # somebody else has just woken it
            if worker.wake.locked():
                worker.wake.release()
    while len(_workers) < helpers and _started():
        pass


def _started() -> bool:
    """Start a worker; False where the system has no more threads: fewer helpers do the same work."""
    worker = _Worker()
    _workers[worker] = None
    try:
        worker.start()
    except BaseException as error:
        if worker.ident is None:  # it does not run, or not yet: then it notes itself
            _workers.pop(worker, None)
        if isinstance(error, RuntimeError | MemoryError):
            return False
        raise
    return True


def uninterrupted(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function that signals interrupt only at its end: Ctrl-C, alarms, whatever has a handler in Python.

    Numba that is interrupted while it compiles, or loads what it compiled, does neither any more in this process: all
    first uses then raise "RuntimeError: generator raised StopIteration".
    """

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            return function(*arguments)
        handlers = {int(number): signal.getsignal(number) for number in signal.valid_signals()}
        held: dict[int, Any] = {number: handler for number, handler in handlers.items() if callable(handler)}
        came: dict[int, Any] = {}
        try:
            for number in held:
                signal.signal(number, came.setdefault)
            return function(*arguments)
        finally:
            error = _restored(held)
            for number, frame in came.items():
                held[number](number, frame)
            if error is not None:
                raise error

    return call


def _restored(handlers: dict[int, Any]) -> BaseException | None:
    """Put handlers of signals back, all of them, also while some raise; returns what was raised first."""
    first: BaseException | None = None
    for number, handler in handlers.items():
        while signal.getsignal(number) is not handler:
            try:
                signal.signal(number, handler)
            except BaseException as error:
                first = first or error
    return first


def _after_fork() -> None:
    """Forget threads, which do not survive a fork; the child starts its own when it needs them."""
    _jobs.clear()
    _workers.clear()
    global_compiler_lock.release()


if hasattr(os, "register_at_fork"):
    # A child forked while another thread compiles would wait for that thread for ever.
    os.register_at_fork(
        before=global_compiler_lock.acquire,
        after_in_parent=global_compiler_lock.release,
        after_in_child=_after_fork,
    )
