"""The GPU of `benchmarks.gpu`: memory, streams, the clock of the device, and what it is called."""

import gc
import importlib.metadata
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np

import sparsembed as se
import sparsembed.cuda
from sparsembed._cuda import views
from sparsembed._engine import cuda

BATCHES = 8  # different inputs, in turn
Step = Callable[[int], Any]  # called with the number of the batch


class OnStream:
    """A device array of somebody who works on a stream of their own."""

    def __init__(self, array: Any, stream: int) -> None:
        self.array, self.stream = array, stream

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return self.array.__cuda_array_interface__ | {"stream": self.stream or None}


class Device:
    """The first GPU."""

    kind = "cuda"  # what tables are made with

    def __init__(self) -> None:
        self.queue = cuda("queues").open_queue(0, 0)  # or the message that says what is missing
        self._streams: list[Any] = []

    def up(self, host: Any) -> Any:
        return self.queue.upload(host)

    def down(self, array: Any) -> Any:
        return self.queue.download(views.view(array, "result"))

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return self.queue.filled(shape, dtype, 0)

    def noise(self, shape: tuple[int, ...]) -> Any:
        """Random float32 numbers, a million of them again and again."""
        flat = self.queue.empty((math.prod(shape),), np.float32)
        block = self.up(np.random.default_rng(0).standard_normal(min(len(flat), 1 << 20), np.float32))
        for start in range(0, len(flat), max(len(block), 1)):
            count = min(len(block), len(flat) - start)
            self.copy(flat.part(start, count), block.part(0, count))
        return flat.reshape(*shape)

    def copy(self, to: Any, array: Any) -> None:
        self.queue.copy(to, array)

    def wait(self, stream: int = 0) -> None:
        """Wait for a stream; raises for ids that were out of range."""
        sparsembed.cuda.synchronize(0, stream)

    def new_stream(self) -> int:
        from cuda.core import Device as Core

        self._streams.append(Core(0).create_stream())
        return int(self._streams[-1].handle)

    def free(self) -> int:
        """Bytes that nobody holds."""
        from cuda.bindings import driver

        self.trim()
        return int(driver.cuMemGetInfo()[1])

    def trim(self) -> None:
        """Give back what this process and its frameworks keep for later."""
        from cuda.bindings import driver

        gc.collect()
        self.wait()
        driver.cuMemPoolTrimTo(driver.cuDeviceGetMemPool(0)[1], 0)
        if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()
        if (cupy := sys.modules.get("cupy")) is not None:
            cupy.get_default_memory_pool().free_all_blocks()

    def seconds(self, work: Callable[[], Any]) -> float:
        """What the device takes for work that is started on its default stream."""
        return float(self.queue.elapsed(work))

    def clock(self) -> float:
        """The host's."""
        return time.perf_counter()

    def machine(self) -> dict[str, Any]:
        """What the numbers are of."""
        from cuda.bindings import driver
        from cuda.core import Device as Core

        gpu = Core(0)
        found: dict[str, Any] = {
            "device": gpu.name,
            "capability": ".".join(map(str, gpu.compute_capability)),
            "multiprocessors": gpu.properties.multiprocessor_count,
            "memory": int(driver.cuMemGetInfo()[2]),
            "cuda": int(driver.cuDriverGetVersion()[1]),
            "driver": _driver(),
        }
        return found | versions()


def _driver() -> str | None:
    """The number of the driver itself."""
    try:
        from cuda.core import system

        return ".".join(map(str, system.get_kernel_mode_driver_version()))
    except Exception:  # no NVML; the version of CUDA is known all the same
        return None


def versions() -> dict[str, Any]:
    found: dict[str, Any] = {"python": platform.python_version(), "system": platform.platform()}
    names = "numba numba-cuda cuda-core cuda-bindings nvidia-nvvm nvidia-nvjitlink numpy torch cupy"
    for name in (*names.split(), "cupy-cuda13x", "cupy-cuda12x"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found | {"sparsembed": se.__version__, "date": datetime.now(UTC).isoformat(timespec="seconds")}


class Effort(NamedTuple):
    """How long to measure."""

    pairs: int = 15
    seconds: float = 0.05  # that a sample takes at least


class Times(NamedTuple):
    """Seconds a call; of a peer also how many times as long it takes, pair by pair."""

    ours: float
    peer: float | None = None
    ratio: float | None = None
    spread: float = 0.0  # of our samples: quartiles over median


def compare(device: Any, ours: Step, peer: Step | None, effort: Effort) -> Times:
    """Time A B A B ... by the clock of the device, on batches in turn; medians, of ratios too."""
    every = [ours] if peer is None else [ours, peer]
    for step in every:  # compiles, and fills pools
        for i in range(BATCHES):
            step(i)
    device.wait()
    numbers = [_number(device, step, effort) for step in every]
    samples: list[list[float]] = [[] for _ in every]
    for turn in range(effort.pairs):
        for step, number, found in zip(every, numbers, samples, strict=True):
            found.append(_sample(device, step, number, turn * number))
    mine = statistics.median(samples[0])
    low, _, high = statistics.quantiles(samples[0], n=4, method="inclusive") if effort.pairs > 1 else (mine,) * 3
    if peer is None:
        return Times(mine, spread=(high - low) / mine)
    ratio = statistics.median(b / a for a, b in zip(*samples, strict=True))
    return Times(mine, statistics.median(samples[1]), ratio, (high - low) / mine)


def _sample(device: Any, step: Step, number: int, first: int) -> float:
    return float(device.seconds(lambda: [step((first + i) % BATCHES) for i in range(number)])) / number


def _number(device: Any, step: Step, effort: Effort) -> int:
    """Calls in a sample."""
    number = 1
    while number < 1 << 14 and _sample(device, step, number, 0) * number < effort.seconds:
        number *= 2
    return number
