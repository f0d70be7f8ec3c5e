"""Runs CUDA kernels as Python, without a GPU: each CUDA thread is a greenlet.

Threads of a block run one at a time, each until it waits for others: in the order of their numbers, or in an
order drawn anew after every wait, which brings out what a kernel leaves to chance.  A barrier that not all reach
is an error.  Needs NUMBA_ENABLE_CUDASIM=1 before sparsembed is imported.
"""

import contextlib
import ctypes
import math
import random
import sys
from typing import Any

import numpy as np
from greenlet import getcurrent, greenlet

from sparsembed._cuda.array import DeviceArray
from sparsembed._cuda.code import types_of
from sparsembed.kernels.cuda import _simulated
from sparsembed.rules._rule import RULES

GARBAGE = 0x7B  # the bytes of memory that nobody has written to


class Thread(greenlet):
    """A CUDA thread: waits for `waiting` = (kind, key), bringing `value`."""

    waiting: Any = None
    value: Any = None


class Running:
    """What the twins ask for: who runs, and how to wait."""

    def __init__(self, kernel: Any, blocks: int, threads: int, arguments: tuple[Any, ...], rng: Any) -> None:
        self.kernel, self.blocks, self.threads, self.arguments, self.rng = kernel, blocks, threads, arguments, rng
        self.block, self.shared = 0, {}
        self.hub: Any = None

    @property
    def thread(self) -> int:
        return getcurrent().number

    def wait(self, kind: str, key: Any, value: Any) -> Any:
        me = getcurrent()
        me.waiting, me.value = (kind, key), value
        self.hub.switch()
        return me.value

    def run_block(self, block: int) -> None:
        self.block, self.shared, self.hub = block, {}, getcurrent()
        every = []
        for number in range(self.threads):
            thread = Thread(lambda: self.kernel(*self.arguments), self.hub)
            thread.number = number
            every.append(thread)
        alive = every
        while alive:
            ready = [each for each in alive if each.waiting is None]
            if self.rng is not None:
                self.rng.shuffle(ready)
            for each in ready:
                each.switch()
            alive = [each for each in alive if not each.dead]
            if alive and all(each.waiting is not None for each in alive):
                self._release(alive)

    def _release(self, alive: list[Thread]) -> None:
        """Let those go on who wait for nobody that is missing."""
        if all(each.waiting[0] == "block" for each in alive):
            for each in alive:
                each.waiting = None
            return
        met = False
        places = {each.number: each for each in alive}
        for each in alive:
            if each.waiting is None or each.waiting[0] != "warp":
                continue
            waiting, (_, mask) = each.waiting, each.waiting[1]
            first = each.number & ~31
            named = [first + lane for lane in range(32) if mask >> lane & 1 and first + lane < self.threads]
            if not mask >> (each.number & 31) & 1:
                raise RuntimeError(f"thread {each.number} is not in the mask {mask:#x} that it names")
            present = [places.get(number) for number in named]
            if all(other is not None and other.waiting == waiting for other in present):
                values = {other.number & 31: other.value for other in present}
                for other in present:
                    other.waiting, other.value = None, values
                met = True
        if not met:
            raise RuntimeError(f"threads wait for each other for ever: {sorted({str(t.waiting) for t in alive})}")


def run(kernel: Any, blocks: int, threads: int, *arguments: Any, seed: int | None = None) -> None:
    """Run a kernel; blocks come one after the other, in any order if a seed is given."""
    rng = None if seed is None else random.Random(seed)
    running = Running(kernel, blocks, threads, tuple(map(flat, arguments)), rng)
    _simulated.running = running
    order = list(range(blocks))
    if rng is not None:
        rng.shuffle(order)
    with np.errstate(all="ignore"), typed_roots():
        for block in order:
            running.run_block(block)


@contextlib.contextmanager
def typed_roots() -> Any:
    """Within it the root of a float32 is one, in rules, too: Python's is a float64, compiled ones are not."""

    def root(x: Any) -> Any:
        return np.sqrt(x) if isinstance(x, np.floating) else math.sqrt(x)

    modules = [sys.modules[rule.__module__] for rule in RULES.values()]
    modules = [each for each in {id(each): each for each in modules}.values() if hasattr(each, "sqrt")]
    for each in modules:
        each.sqrt = root
    try:
        yield
    finally:
        for each in modules:
            each.sqrt = math.sqrt


def flat(argument: Any) -> Any:
    """Device arrays as the flat arrays that stand for pointers; their addresses are of host memory."""
    if not isinstance(argument, DeviceArray):
        return int(argument) if isinstance(argument, np.integer) else argument
    return host(argument.pointer, argument.extent, argument.dtype)


def host(pointer: int, count: int, dtype: Any) -> Any:
    """View host memory."""
    if count == 0:
        return np.empty(0, dtype)
    memory = (ctypes.c_char * (count * np.dtype(dtype).itemsize)).from_address(pointer)
    return np.frombuffer(memory, dtype)


class Queue:
    """A stream of a device that is this computer."""

    def __init__(self, seed: int | None = None, most_blocks: int = 3, stream: int = 1) -> None:
        self.seed, self.most_blocks, self.stream = seed, most_blocks, stream
        self.started, self.waited, self.held, self.met = [], [], [], set()
        self.seen = {}  # of each queue that was waited for, how many kernels it had been given
        self.capturing = False  # whether it stands for a stream of which a graph is made
        self.record = self.filled((2,), np.uint64, 0xFF)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        return self.filled(shape, dtype, GARBAGE)

    def filled(self, shape: tuple[int, ...], dtype: Any, byte: int) -> DeviceArray:
        dtype = np.dtype(dtype)
        size = int(np.prod(shape)) * dtype.itemsize
        memory = np.full(size + 64, byte, np.uint8)
        address = memory.__array_interface__["data"][0]
        return DeviceArray(address - address % -64, tuple(shape), dtype, memory, stream=self.stream)

    def several(self, *wanted: Any) -> list[DeviceArray]:
        return [self.empty(*each) for each in wanted]

    def upload(self, array: Any) -> DeviceArray:
        array = np.ascontiguousarray(array)
        made = self.empty(array.shape, array.dtype)
        host(made.pointer, array.size, array.dtype)[:] = array.reshape(-1)
        return made

    def download(self, array: DeviceArray) -> Any:
        assert array.extent == array.size
        return flat(array).copy().reshape(array.shape)

    def write(self, array: DeviceArray, values: Any) -> None:
        host(array.pointer, array.size, array.dtype)[:] = np.asarray(values).reshape(-1)

    def copy(self, to: DeviceArray, array: DeviceArray) -> None:
        self.write(to, flat(array))

    def mark(self, mark: Any = None) -> Any:
        """What `after` takes."""
        return None if self.capturing else self

    def after(self, mark: Any, *arrays: Any) -> None:
        """Note whom this stream waits for; everything here is done at once."""
        if mark is not None and not self.capturing:
            self.waited.append(mark)
            self.seen[mark] = len(mark.started)

    def hold(self, *objects: Any) -> None:
        """Note what is kept until the stream is done."""
        self.held += objects

    def blocks(self, items: int, items_each: int) -> int:
        return min(-(-items // items_each), self.most_blocks)

    def launch(self, kernel: Any, blocks: int, threads: int, *arguments: Any) -> None:
        self.started.append(kernel.__name__)
        self.met.add((kernel, types_of(arguments)))
        run(kernel, blocks, threads, *arguments, seed=None if self.seed is None else self.seed + len(self.started))

    def ready(self, *arguments: Any) -> tuple[Any, ...]:
        return self.launch, *arguments
