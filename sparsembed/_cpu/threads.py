"""Run kernels on several threads, without Numba's threading layer.

Every thread calls the kernel with the same arguments.  The kernel claims blocks of work from a shared counter
until none is left, so the load is balanced also when a core is busy with other work.  Threads start within about
30 us.  Numba's threading layers abort the process when two Python threads call at once (workqueue) or end a forked
child (omp).  Blocks do not depend on the number of threads, so results do not either.
"""

import contextlib
import ctypes
import os
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np
from numba.core import config
from numba.core.compiler_lock import global_compiler_lock
from numba.np.ufunc import parallel

from ..kernels.cpu._sharing import SLOTS, WRONG


def _unknown_core() -> int:
    return -1


_core: Callable[[], int] = _unknown_core
if hasattr(os, "sched_setaffinity"):  # PyDLL keeps the GIL: a worker would take it if the call released it
    _core = getattr(ctypes.PyDLL(None), "sched_getcpu", _unknown_core)


class Job(NamedTuple):
    """A kernel to run, as ``kernel(claims, num_blocks, *arguments)``; see `run`."""

    kernel: Callable[..., None]
    num_blocks: int
    arguments: tuple[Any, ...]
    kept: Any = None


class _Batch:
    """Jobs of one caller, in order; free threads help with them.  Keeps the arguments alive.

    Parameters
    ----------
    calls : list of (kernel, arguments)
        The jobs that threads can share.
    kept
        Objects to keep alive as long as the batch.
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
        """Tell helpers to leave, and drop the batch from the queue, which would keep the arguments alive."""
        self.over = True
        while self in _jobs:
            with contextlib.suppress(ValueError):
                _jobs.remove(self)


class _Worker(threading.Thread):
    """A thread that takes jobs, and sleeps while there are none."""

    def __init__(self) -> None:
        super().__init__(name="sparsembed", daemon=True)
        self.wake = threading.Lock()  # released to wake the thread; if awake, it looks for jobs once more
        self.busy = True
        self.avoided = -1

    def avoid(self, core: int) -> None:
        """Do not run on `core`, the core of the caller.

        Linux 6.18 often wakes a thread on the core of the waking thread, and both then share that core for
        milliseconds: two threads took as long as one.
        """
        if core == self.avoided or self.native_id is None:
            return
        self.avoided = core
        with contextlib.suppress(OSError):
            if others := os.sched_getaffinity(os.getpid()) - {core}:
                os.sched_setaffinity(self.native_id, others)

    def run(self) -> None:
        _workers[self] = None  # here, too: the thread that started this one may have been interrupted
        while True:
            # A kernel that does not compile raises in the caller, too.  `pop` raises if another thread took the job.
            with contextlib.suppress(Exception):
                self.wake.acquire()
                self.busy = True
                while _jobs:
                    _jobs.pop().work()
            self.busy = False


_jobs: list[_Batch] = []  # appended to by callers; jobs that are done do nothing when called
_workers: dict[_Worker, None] = {}


def num_threads() -> int:
    """Return Numba's number of threads (NUMBA_NUM_THREADS, set_num_threads), without starting Numba's threads."""
    if config.DISABLE_JIT:
        return 1  # plain Python has no atomic counters
    if getattr(parallel, "_is_initialized", False):
        return int(numba.get_num_threads())
    return int(config.NUMBA_NUM_THREADS)


def run(kernel: Callable[..., None], num_blocks: int, *arguments: Any, kept: Any = None) -> bool:
    """Call ``kernel(claims, num_blocks, *arguments)`` on up to `num_threads` threads; return once all blocks are done.

    Same as `run_all` with one job.  All blocks are written, or none: the caller's call into compiled code begins the
    work, and returns after the last block, whichever threads work on the blocks.  So an interrupt or any other
    exception is raised before or after the work.

    Parameters
    ----------
    kernel : compiled function
    num_blocks : int
    arguments
        The rest of its arguments.
    kept
        Objects that the kernel knows by address only; kept alive until no thread can use them.

    Returns
    -------
    bool
        Whether the kernel met ids out of range; see `kernels.cpu._sharing.within`.
    """
    claims = np.zeros(SLOTS, np.int64)
    if num_blocks > 1 and (helpers := _helpers(kernel, num_blocks)):  # `run_all` takes 7 us more
        batch = _Batch([(kernel, (claims[:-1], num_blocks, *arguments))], kept)  # [:-1]: see `enter`
        try:
            _ask(helpers, batch)
            kernel(claims, num_blocks, *arguments)
        finally:
            batch.withdraw()
    else:
        kernel(claims, num_blocks, *arguments)
    return bool(claims[WRONG])


def run_all(jobs: list[Job]) -> list[bool]:
    """Run kernels one after the other, as `run` does; helpers are woken once for all jobs.

    A job starts when all blocks of the previous job are done, so it may use the results of that job.  Each job is done
    completely or not at all; after an exception between two jobs, the earlier jobs are done.

    Parameters
    ----------
    jobs : list of Job
        The caller runs jobs of one block alone.

    Returns
    -------
    list of bool
        For each job, whether its kernel met ids out of range.
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
    """Return how many threads can help: none before the kernel is compiled, which only the caller does."""
    if num_blocks <= 1 or not getattr(kernel, "overloads", True):
        return 0
    return min(num_threads(), num_blocks) - 1


def _ask(helpers: int, batch: _Batch) -> None:
    """Offer a batch to `helpers` threads: wake sleeping threads first, and start new ones up to that number."""
    _jobs.extend([batch] * helpers)
    core = _core()
    for worker in sorted(_workers, key=lambda worker: worker.busy)[:helpers]:
        worker.avoid(core)
        with contextlib.suppress(RuntimeError):  # another thread has just woken it
            if worker.wake.locked():
                worker.wake.release()
    while len(_workers) < helpers and _started():
        pass


def _started() -> bool:
    """Start a worker; return False if the system cannot start another thread, which only means fewer helpers."""
    worker = _Worker()
    _workers[worker] = None
    try:
        worker.start()
    except BaseException as error:
        if worker.ident is None:  # it does not run; if it starts after all, it adds itself in `run`
            _workers.pop(worker, None)
        if isinstance(error, RuntimeError | MemoryError):
            return False
        raise
    return True


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
