"""Run kernels on several threads, without Numba's threading layer.

Every thread calls the kernel with the same arguments.  The kernel claims blocks of work from a shared counter
until none is left, so the load is balanced also when a core is busy with other work.  Workers are Python threads that
stay in compiled code, where the kernel hands itself to them (`kernels.cpu._workers`): a worker that is awake starts
within a microsecond.  It stays awake for `_AWAKE` after a job; one that sleeps is woken for long work, or when calls
follow each other.  One call at a time has the workers; others work alone meanwhile.

Numba's threading layers abort the process when two Python threads call at once (workqueue) or end a forked
child (omp).  Blocks do not depend on the number of threads, so results do not either.
"""

import atexit
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

from ..kernels.cpu import _workers
from ..kernels.cpu._sharing import AWAKE, BLOCKS, BOX, PLACES, SLOTS, WAITED, WRONG

_AWAKE = 100e-6  # seconds that a worker spins before it sleeps; 200 us cost 5 % beside torch, whose threads spin, too
_STREAK = 8  # calls that follow each other, then sleeping workers are woken for short work; an update makes up to 4
LONG = 48  # blocks (1.5 MiB, 150 us) for which it pays to wake a worker after a pause: at 1 MiB both take as long
# Turns (40 us, then the core is given away) after which a worker has lost its core in the middle of a block, to other
# programs or to threads of other libraries that spin: such a call may take 4 ms longer.  It is cheaper to do without
# workers for a while, for 1, 3, 7 calls and so on: beside torch, two threads took up to twice as long as one.
_LATE, _LONELIEST = 1200, 31
_ROOM = 256  # workers that a box has room for
_allocate, _acquire = (ctypes.pythonapi[f"PyThread_{name}_lock"] for name in ("allocate", "acquire"))
_allocate.restype, _acquire.argtypes = ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_int)


def _unknown_core() -> int:
    return -1


_core: Callable[[], int] = _unknown_core
if hasattr(os, "sched_setaffinity"):  # PyDLL keeps the GIL: a worker would take it if the call released it
    _core = getattr(ctypes.PyDLL(None), "sched_getcpu", _unknown_core)


class _Worker(threading.Thread):
    """A thread that helps with the jobs of a team, and sleeps while there are none."""

    def __init__(self, team: "_Team", spins: int) -> None:
        super().__init__(name="sparsembed", daemon=True)
        self.team, self.spins = team, spins
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
        self.team.workers[self] = None  # here, too: the thread that started this one may have been interrupted
        if (lock := _allocate()) is not None:
            _acquire(lock, 1)
            _workers.work(self.team.box, lock, self.spins)


class _Team:
    """Workers, and the box of numbers through which they get their jobs."""

    def __init__(self) -> None:
        size = _workers.EACH_THREAD + _ROOM * _workers.BYTES
        self.memory = np.zeros(size // 8 + 8, np.int64)
        self.box = self.memory.ctypes.data + -self.memory.ctypes.data % 64
        self.workers: dict[_Worker, None] = {}
        self.started = 0  # threads that were started, or may have been
        self.spins = 0  # turns of `_AWAKE`
        self.starting = threading.Lock()
        self.over = False
        self.last, self.streak = 0.0, 0  # when the newest call ended; calls that followed each other
        self.alone = self.lonely = 0  # calls still to do without workers; how many it were, the last time

    def offer(self, claims: Any, num_blocks: int, helpers: int, wake: int) -> None:
        """Let a kernel that is called with `claims` share its work with `helpers` workers."""
        if self.alone > 0:
            self.alone -= 1
            return
        if len(self.workers) < helpers and not self.start(helpers):
            return
        pause = time.perf_counter() - self.last
        self.streak = self.streak + 1 if pause < _AWAKE else 0
        wanted = helpers if self.streak >= _STREAK else min(helpers, wake)
        if wanted == 0 and pause > 2 * _AWAKE:
            return  # all sleep: to offer work costs 5 us, on a core that has just been idle
        if wanted > 0 and (self.streak <= _STREAK or self.streak % 32 == 0):  # they may sleep, or the caller has moved
            core = _core()
            for worker in list(self.workers):
                worker.avoid(core)
        claims[BLOCKS], claims[PLACES], claims[AWAKE], claims[BOX] = num_blocks, helpers, wanted, self.box

    def learn(self, waited: int) -> None:
        """Note how long a caller has waited for workers: if they do not get a core, the next calls do without them."""
        self.last = time.perf_counter()
        if waited > _LATE:
            self.alone = self.lonely = min(2 * self.lonely + 1, _LONELIEST)
        elif self.lonely:
            self.lonely -= 1

    def start(self, helpers: int) -> bool:
        """Start workers up to `helpers`; return whether there are any."""
        if not self.over and self.starting.acquire(blocking=False):
            try:
                self.spins = self.spins or _turns(_AWAKE)
                cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
                while len(self.workers) < helpers and self.started < _ROOM and self.one(cores):
                    pass
            finally:
                self.starting.release()
        return bool(self.workers)

    def one(self, cores: int) -> bool:
        """Start a worker; return False if the system cannot start another thread, which only means fewer helpers."""
        spins = self.spins if len(self.workers) < cores - 1 else 0  # one that spins must not take a core that works
        worker = _Worker(self, spins)
        self.started += 1
        try:
            worker.start()
        except RuntimeError:
            self.started -= 1
            return False
        except MemoryError:
            return False
        self.workers[worker] = None
        return True

    def end(self) -> None:
        """Let all workers return: nothing may run compiled code when the process takes it down."""
        self.over = True  # a thread that is being started meanwhile finds END
        self.memory[(self.box + _workers.END - self.memory.ctypes.data) // 8] = 1
        for worker in list(self.workers):
            while worker.is_alive():
                _workers.wake(self.box, _ROOM)
                worker.join(0.001)


_teams = [_Team()]  # the last one works; the others were of the parents of this process, and a call may still name them


@atexit.register
def _ended() -> None:
    """End the workers of this process."""
    _teams[-1].end()


def num_threads() -> int:
    """Return Numba's number of threads (NUMBA_NUM_THREADS, set_num_threads), without starting Numba's threads."""
    if config.DISABLE_JIT:
        return 1  # plain Python has no atomic counters
    if getattr(parallel, "_is_initialized", False):
        return int(numba.get_num_threads())
    return int(config.NUMBA_NUM_THREADS)


def run(kernel: Callable[..., None], num_blocks: int, *arguments: Any, wake: int | None = None) -> bool:
    """Call ``kernel(claims, num_blocks, *arguments)`` on up to `num_threads` threads; return once all blocks are done.

    All blocks are written, or none: the caller's call into compiled code begins the work, and returns after the last
    block, whichever threads work on the blocks.  So an interrupt or any other exception is raised before or after the
    work.

    Parameters
    ----------
    kernel : compiled function
    num_blocks : int
    arguments
        The rest of its arguments.
    wake
        How many workers are worth waking if they sleep; by default one for `LONG` blocks.

    Returns
    -------
    bool
        Whether the kernel met ids out of range; see `kernels.cpu._sharing.within`.
    """
    claims = np.zeros(SLOTS, np.int64)
    if num_blocks == 1 or (helpers := min(num_threads(), num_blocks, _ROOM) - 1) <= 0:
        kernel(claims, num_blocks, *arguments)
        return bool(claims[WRONG])
    team = _teams[-1]
    team.offer(claims, num_blocks, helpers, num_blocks // LONG if wake is None else wake)
    kernel(claims, num_blocks, *arguments)
    team.learn(int(claims[WAITED]))
    return bool(claims[WRONG])


def _turns(seconds: float) -> int:
    """Return how many turns a worker spins in some time; a pause takes 10 to 140 cycles."""
    turns, box = 1000, np.zeros(_workers.EACH_THREAD // 8, np.int64)
    _workers.work(box.ctypes.data, 0, 0)  # compiled, and `wake`, too, which is needed at exit
    _workers.wake(box.ctypes.data, 0)
    spans = []
    for _ in range(3):
        begun = time.perf_counter()
        _workers.work(box.ctypes.data, 0, turns)
        spans.append(time.perf_counter() - begun)
    return max(1, int(turns * seconds / max(min(spans), 1e-9)))


def _after_fork() -> None:
    """Forget threads, which do not survive a fork; the child starts its own when it needs them."""
    _teams.append(_Team())
    global_compiler_lock.release()


if hasattr(os, "register_at_fork"):
    # A child forked while another thread compiles would wait for that thread for ever.
    os.register_at_fork(
        before=global_compiler_lock.acquire,
        after_in_parent=global_compiler_lock.release,
        after_in_child=_after_fork,
    )
