"""Run one kernel on several threads, without Numba's threading layer.

A kernel is called by every thread with the same arguments and claims blocks of work from a
shared counter until none is left.  Numba's own layers abort the process when two Python
threads call at once (workqueue) or end a forked child (omp); these threads do neither, start
in about 30 us and balance themselves when one core is busy elsewhere.  Blocks never depend
on the number of threads, so neither do results.
"""

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba.core import config
from numba.core.compiler_lock import global_compiler_lock
from numba.np.ufunc import parallel

NEXT, DONE, MEMBERS, SLOTS = 0, 8, 16, 24  # slots of the claims array, one cache line apart


def _unknown_core() -> int:
    return -1


_core: Callable[[], int] = _unknown_core
if hasattr(os, "sched_setaffinity"):  # PyDLL: a call that let go of the interpreter would lose it to a worker
    _core = getattr(ctypes.PyDLL(None), "sched_getcpu", _unknown_core)


class _Job:
    """A kernel and its arguments, to be called by any thread that is free."""

    def __init__(self, kernel: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        self.kernel, self.arguments = kernel, arguments


class _Worker(threading.Thread):
    """A thread that takes jobs, and sleeps while there are none."""

    def __init__(self) -> None:
        super().__init__(name="sparsembed", daemon=True)
        self.wake = threading.Lock()
        self.wake.acquire()
        self.avoided = -1
        self.start()

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
        while True:
            try:
                job = _jobs.pop()
            except IndexError:
                _idle.append(self)
                if not _jobs:  # else a job came in between, and nobody may have been woken for it
                    self.wake.acquire()
                    continue
                with contextlib.suppress(ValueError):
                    _idle.remove(self)
                    continue
                self.wake.acquire()  # woken already
                continue
            # A kernel that does not compile raises in the caller, too.
            with contextlib.suppress(Exception):
                job.kernel(*job.arguments)
            del job


_jobs: list[_Job] = []  # appended to by callers; a job that is done does nothing when called
_idle: list[_Worker] = []
_workers: list[_Worker] = []


def num_threads() -> int:
    """Return what Numba was told (NUMBA_NUM_THREADS, set_num_threads), without starting its threads."""
    if config.DISABLE_JIT:
        return 1  # plain Python has no atomic counters
    if getattr(parallel, "_is_initialized", False):
        return int(numba.get_num_threads())
    return int(config.NUMBA_NUM_THREADS)


def run(kernel: Callable[..., None], num_blocks: int, *arguments: Any) -> None:
    """Call ``kernel(claims, num_blocks, *arguments)`` on up to `num_threads` threads; wait for all blocks.

    Interrupts are delivered once every block is written.
    """
    claims = np.zeros(SLOTS, np.int64)
    if num_blocks == 1:
        kernel(claims, 1, *arguments)
        return
    call = (claims, num_blocks, *arguments)
    helpers = min(num_threads(), num_blocks) - 1
    job = _Job(kernel, call)
    caught: BaseException | None = None
    try:
        while claims[DONE] < num_blocks:
            try:
                if claims[NEXT] >= num_blocks:  # other threads are at work on the last ones
                    time.sleep(0)
                    continue
                if helpers and caught is None and getattr(kernel, "overloads", True):
                    # An uncompiled kernel runs here first, alone.
                    _ask(helpers, job)
                kernel(*call)
            except BaseException as error:
                # Finish first: blocks are written already, and other threads write to these arrays.
                if not claims[NEXT] and (caught is not None or not isinstance(error, KeyboardInterrupt)):
                    raise
                caught = caught or error
    finally:
        while helpers and job in _jobs:  # nobody was free: do not keep the arguments alive
            with contextlib.suppress(ValueError):
                _jobs.remove(job)
    if caught is not None:
        raise caught


def _ask(helpers: int, job: _Job) -> None:
    """Offer a job to `helpers` threads: sleeping ones, new ones up to that number, or the next to be free."""
    _jobs.extend([job] * helpers)
    core = _core()
    for _ in range(helpers):
        try:
            worker = _idle.pop()
            try:
                worker.avoid(core)
            finally:
                worker.wake.release()
        except IndexError:
            if len(_workers) < helpers:
                _workers.append(_Worker())


def _after_fork() -> None:
    """Forget threads, which do not survive a fork; the child starts its own when it needs them."""
    for each in (_jobs, _idle, _workers):
        each.clear()
    global_compiler_lock.release()


if hasattr(os, "register_at_fork"):
    # A child forked while another thread compiles would wait for that thread for ever.
    os.register_at_fork(
        before=global_compiler_lock.acquire,
        after_in_parent=global_compiler_lock.release,
        after_in_child=_after_fork,
    )
