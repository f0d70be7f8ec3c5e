"""Paired timing, the speed of memory, and what machine this is."""

import contextlib
import gc
import importlib.metadata
import importlib.util
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
from numba.core import config

import sparsembed as se

Step = Callable[[int], Any]  # called with the number of the batch

THREADS = min(2, config.NUMBA_NUM_THREADS)  # to measure with, unless told otherwise
_PAUSE = 0.015  # OpenMP threads of a peer were seen to spin for 11 ms after its last call
_SHORT = 5e-3  # seconds that a sample takes at least
_BLOCK = 0.3  # seconds between two looks at who had the cores


class Effort(NamedTuple):
    """How long to measure a pair of functions, and with which clock."""

    pairs: int = 21  # at least
    seconds: float = 3.0  # at least
    patience: float = 20.0  # seconds to wait for a quiet machine
    cpu_time: bool = False  # seconds of the processor that this process used, instead of those that passed

    def clock(self) -> float:
        return time.process_time() if self.cpu_time else time.perf_counter()


class Paired(NamedTuple):
    """Seconds per call of two functions, one sample of each in turn."""

    ours: list[float]
    peer: list[float]
    undisturbed: bool  # other programs did not take the cores


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def paired(ours: Step, peer: Step, batches: int, effort: Effort) -> Paired:
    """Time A B A B ..., without garbage collection, on batches 0, 1, 2, ... in turn.

    Short calls are repeated within a sample.  Both functions have run before, so nothing compiles here.
    Pairs during which other programs took the cores do not count, unless waiting brings too few others.
    """

    def sample(function: Step, first: int, number: int) -> float:
        time.sleep(_PAUSE)
        for i in range(first, first + max(1, number // 2)):  # a loop in which nothing rests: cores and threads wake
            function((i + number) % batches)
        start = effort.clock()
        for i in range(first, first + number):
            function(i % batches)
        return (effort.clock() - start) / number

    number = 1
    for _ in range(3):  # a call after a pause says little about a short one
        number = 1 + int(_SHORT / max(min(sample(each, 0, number) for each in (ours, peer)), 1e-6))
    every: list[tuple[float, float]] = []
    calm: list[tuple[float, float]] = []
    start = time.perf_counter()
    with no_garbage_collection():
        while True:
            watch, block = Watch(), len(every)
            while len(every) == block or time.perf_counter() < watch.start + min(effort.seconds, _BLOCK):
                first = len(every) * number
                every.append((sample(ours, first, number), sample(peer, first, number)))
            if effort.cpu_time or watch.undisturbed():
                calm += every[block:]
            else:
                _wait_for_calm(start + effort.patience)
            elapsed = time.perf_counter() - start
            if len(calm) >= effort.pairs and elapsed >= effort.seconds:
                break
            if len(every) >= effort.pairs and elapsed >= effort.patience:
                break
    kept = calm if len(calm) >= effort.pairs else every
    return Paired([a for a, _ in kept], [b for _, b in kept], kept is calm)


def _wait_for_calm(end: float) -> None:
    while time.perf_counter() < end:
        watch = Watch()
        time.sleep(0.5)
        if watch.undisturbed():
            break


class Watch:
    """Watches whether this process got all cores that it asked for since the watch was made (Linux only)."""

    def __init__(self) -> None:
        self.start, self.used, self.waited = time.perf_counter(), time.process_time(), _waited()
        self.cores, self.idle = _idle()

    def undisturbed(self) -> bool:
        elapsed, used = time.perf_counter() - self.start, time.process_time() - self.used
        others = self.cores * elapsed - (_idle()[1] - self.idle) - used  # idle time is counted in hundredths
        return others <= 0.05 * elapsed + 0.02 and _waited() - self.waited <= 0.02 * elapsed


def _idle() -> tuple[int, float]:
    """Return the number of cores of the machine, and the seconds that they have been idle."""
    if not Path("/proc/stat").exists():
        return 0, 0.0
    lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
    cores = [line for line in lines if line[0].startswith("cpu") and line[0] != "cpu"]
    return len(cores), sum(int(line[4]) + int(line[5]) for line in cores) / os.sysconf("SC_CLK_TCK")


def _waited() -> float:
    """Seconds that the threads of this process have waited for a core so far."""
    total = 0
    for task in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # a thread that has ended
            total += int(task.read_text().split()[1])
    return total * 1e-9


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Collect now and not again before the end of the block."""
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def set_threads(threads: int) -> None:
    """Tell sparsembed, torch and FBGEMM how many threads to use, and JAX, which asks once, when it starts."""
    numba.set_num_threads(threads)
    os.environ["NPROC"] = str(threads)
    if installed("torch"):
        import torch

        torch.set_num_threads(threads)


def installed(module: str) -> bool:
    """Whether a module can be imported."""
    return importlib.util.find_spec(module) is not None


def copy_bandwidth(size: int, effort: Effort) -> dict[str, float]:
    """Bytes per second, read plus written, of the ways to copy `size` bytes; the best counts.

    ``se.gather`` of rows in order is a copy on all threads, past the cache.
    """
    rows = size // 256
    source, target = np.ones((rows, 64), np.float32), np.ones((rows, 64), np.float32)
    ids = np.arange(rows)
    ways: dict[str, Step] = {
        "numpy.copyto": lambda _: np.copyto(target, source),
        "sparsembed.gather": lambda _: se.gather(source, ids, out=target),
    }
    if installed("torch"):
        import torch

        to, of = torch.from_numpy(target), torch.from_numpy(source)
        ways["torch copy_"] = lambda _: to.copy_(of)
    result = {}
    for name, copy in ways.items():
        copy(0)
        times = paired(copy, copy, 1, effort)
        result[name] = 2 * rows * 256 / statistics.median(times.ours + times.peer)
    return result


def machine() -> dict[str, Any]:
    """Return the machine, the versions and the number of threads of a measurement."""
    names = ("sparsembed", "numba", "numpy", "scipy", "torch", "fbgemm-gpu-cpu", "jax", "optax")
    versions = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": numba.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "huge_pages": _huge_pages(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "versions": versions,
        "date": datetime.now(UTC).date().isoformat(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _huge_pages() -> str:
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not setting.exists():
        return "unknown"
    return setting.read_text().partition("[")[2].partition("]")[0]
