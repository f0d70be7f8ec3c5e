"""A stream of a GPU: memory on it, and kernels started on it.

Work of one queue is done in order.  To use an array on another queue, record an event with `mark` on the queue that
wrote the array, and wait for the event with `after` on the other queue.  Arrays are freed in the order of the queue
that made them, or that took them with `after`.  A stream must outlive the arrays that were made on it.
"""

import itertools
import math
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from cuda.bindings import driver

from . import code
from .array import DeviceArray
from .driver import Mark, checked, failure

LEGACY, PER_THREAD = 1, 2  # streams that have numbers; 0 is taken for the legacy default stream
_BLOCKS_EACH = 32  # most blocks for each multiprocessor; kernels loop over the remaining items
_APART = 256  # bytes: arrays start at multiples of the driver's alignment
_THREADS = 256  # most threads of a block
_configs: dict[tuple[int, int], Any] = {}


class Queue:
    """A stream of a device; `open_queue` makes it.

    Parameters
    ----------
    device : int
    stream : int
        The address of a stream; 0 or 1 is the legacy default stream, 2 that of the calling thread.
    lock : threading.RLock
    """

    def __init__(self, device: int, stream: int, lock: Any) -> None:
        from cuda.core import LEGACY_DEFAULT_STREAM, PER_THREAD_DEFAULT_STREAM, Device, LaunchConfig, Stream, launch

        its = Device(device)
        its.set_current()
        self.device, self.stream = device, stream or LEGACY
        self._context = driver.CUcontext(int(its.context.handle))
        self._handles = driver.CUstream(self.stream), driver.CUstream(LEGACY)
        self._thread = threading.get_ident() if self.stream == PER_THREAD else None
        named = {LEGACY: LEGACY_DEFAULT_STREAM, PER_THREAD: PER_THREAD_DEFAULT_STREAM}
        self._stream = named.get(self.stream) or Stream.from_handle(stream)
        # Threads share memory, so memory of a per-thread stream is freed on the legacy stream, which waits for all
        # per-thread streams, and for which they wait.
        self._lender = LEGACY_DEFAULT_STREAM if self.stream == PER_THREAD else self._stream
        self._start, self._config = launch, LaunchConfig
        self._memory = its.memory_resource
        self._capability = tuple(its.compute_capability)
        self._most = _BLOCKS_EACH * its.properties.multiprocessor_count
        self._lock, self._held = lock, deque[tuple[Mark, Any]]()
        self.kernels: dict[Any, Any] = {}  # shared by all queues of the device
        #: The first ids, and offsets, that were out of range on this stream.
        self.record: DeviceArray

    @property
    def _elsewhere(self) -> bool:
        """Whether this is the per-thread stream of another thread.

        Here its number would mean the per-thread stream of the current thread.  So the legacy stream takes its place,
        which waits for all per-thread streams, and for which they wait.
        """
        return self._thread is not None and self._thread != threading.get_ident()

    @property
    def handle(self) -> Any:
        """The handle of the stream for the driver."""
        return self._handles[self._elsewhere]

    def enter(self) -> None:
        """Make the device the current one of this thread."""
        if driver.cuCtxGetCurrent()[1] != self._context:
            checked(driver.cuCtxSetCurrent(self._context), f"using GPU {self.device}")

    def empty(self, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        """Return uninitialised memory, which is freed in the order of the stream."""
        dtype = np.dtype(dtype)
        if not (size := math.prod(shape) * dtype.itemsize):
            return DeviceArray(0, tuple(shape), dtype, None, stream=self.stream)
        try:
            memory = self._lent(size)
        except Exception as error:
            raise failure(str(error), f"{size} bytes on GPU {self.device}") from error
        return DeviceArray(int(memory.handle), tuple(shape), dtype, memory, stream=self.stream)

    def several(self, *wanted: tuple[tuple[int, ...], Any]) -> list[DeviceArray]:
        """Return uninitialised arrays of these shapes and dtypes, from one allocation of 2 us instead of one each."""
        sizes = [math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in wanted]
        starts = list(itertools.accumulate((-(-size // _APART) * _APART for size in sizes), initial=0))
        whole = self.empty((starts[-1],), np.uint8)
        return [
            DeviceArray(whole.pointer + start, tuple(shape), dtype, whole.owner, stream=self.stream)
            for start, (shape, dtype) in zip(starts, wanted, strict=False)
        ]

    def _lent(self, size: int) -> Any:
        """Return memory of the device's pool, or, during a capture, of the CUDA graph, as cuda.core requires."""
        try:
            return self._memory.allocate(size, stream=self._lender)
        except RuntimeError:
            if not self.capturing:
                raise
        from cuda.core import GraphMemoryResource

        return GraphMemoryResource(self.device).allocate(size, stream=self._lender)

    def filled(self, shape: tuple[int, ...], dtype: Any, byte: int) -> DeviceArray:
        """Return memory with every byte set to `byte`."""
        array = self.empty(shape, dtype)
        if array.pointer:
            checked(driver.cuMemsetD8Async(array.pointer, byte, array.nbytes, self.handle), "filling memory")
        return array

    def upload(self, host: Any) -> DeviceArray:
        """Return a copy of a host array on the device; see `write`."""
        host = np.ascontiguousarray(host)
        array = self.empty(host.shape, host.dtype)
        self.write(array, host)
        return array

    def write(self, array: DeviceArray, host: Any) -> None:
        """Copy from the host into an array; pageable memory has been read when this returns.

        A copy of up to 64 KB does not wait for the stream; a longer one may.  During the capture of a CUDA graph this
        is refused: each launch of the graph would read the host's memory again.
        """
        host = np.ascontiguousarray(host)
        if host.nbytes != array.nbytes:
            raise ValueError(f"host must have {array.nbytes} bytes, got {host.nbytes}")
        if array.nbytes:
            if self.capturing:
                raise RuntimeError(
                    "this call copies from the host, which a CUDA graph cannot repeat; capture updates within "
                    "table.recording(), and make everything else before"
                )
            source = host.__array_interface__["data"][0]
            checked(driver.cuMemcpyHtoDAsync(array.pointer, source, array.nbytes, self.handle), "copying from the host")

    def copy(self, to: DeviceArray, array: DeviceArray) -> None:
        """Copy within the device."""
        if array.nbytes:
            checked(driver.cuMemcpyDtoDAsync(to.pointer, array.pointer, array.nbytes, self.handle), "copying")

    def download(self, array: DeviceArray) -> Any:
        """Return a NumPy copy; waits for all earlier work of the stream."""
        host = np.empty(array.shape, array.dtype)
        if array.nbytes:
            target = host.__array_interface__["data"][0]
            checked(driver.cuMemcpyDtoHAsync(target, array.pointer, array.nbytes, self.handle), "copying to the host")
        self.wait()
        return host

    def wait(self) -> None:
        """Wait for all work that was started."""
        checked(driver.cuStreamSynchronize(self.handle), "waiting for the GPU")

    @property
    def capturing(self) -> bool:
        """Whether a CUDA graph is being captured on this stream."""
        error, status = driver.cuStreamIsCapturing(self.handle)
        return bool(error or status)  # an error: the legacy stream, while another is captured

    def mark(self, mark: Mark | None = None) -> Mark | None:
        """Return a mark (an event), new or reused, at the end of the work that was started so far; see `after`.

        During the capture of a CUDA graph no event is recorded: whoever launches the graph orders the work after it.
        """
        if self.capturing:
            return mark
        if mark is None or mark.queue.device != self.device:
            mark = Mark(self)
        mark.queue = self
        mark.record()
        return mark

    def after(self, mark: Mark | None, *arrays: DeviceArray | None) -> None:
        """Make later work of this queue wait for a mark of another queue, and free `arrays` in the order of this queue.

        The queue of the mark does not wait.
        """
        if mark is None or mark.queue is self or self.capturing:
            return
        checked(driver.cuStreamWaitEvent(self.handle, mark.event, 0), "waiting for a stream")
        for array in arrays:
            owner: Any = None if array is None else array.owner
            if hasattr(owner, "set_deallocation_stream"):
                owner.set_deallocation_stream(self._lender)

    def hold(self, *objects: Any) -> None:
        """Keep objects alive until the stream has done its work so far: JAX, say, frees arrays without waiting."""
        if (mark := self.mark()) is not None:
            with self._lock:
                self._held.append((mark, objects))
                while self._held and not driver.cuEventQuery(self._held[0][0].event)[0]:
                    self._held.popleft()

    def elapsed(self, work: Callable[[], Any]) -> float:
        """Return the seconds that the device takes for the work that `work` starts."""
        start, end = (Mark(self, timed=True) for _ in range(2))
        start.record()
        work()
        end.record()
        checked(driver.cuEventSynchronize(end.event), "waiting for the GPU")
        return float(checked(driver.cuEventElapsedTime(start.event, end.event), "reading a clock")) / 1e3

    def blocks(self, items: int, items_each: int) -> int:
        """Return the number of blocks for so many items: no more than the device can run at once."""
        return int(min(max(-(-items // items_each), 1), self._most))

    def launch(self, kernel: Callable[..., Any], blocks: int, threads: int, *arguments: Any) -> None:
        """Start a kernel; the first call with arguments of these types compiles it."""
        start, *given = self.ready(kernel, blocks, threads, *arguments)
        try:
            start(*given)
        except Exception as error:
            raise unstarted(error, kernel, blocks, threads) from error

    def ready(self, kernel: Callable[..., Any], blocks: int, threads: int, *arguments: Any) -> tuple[Any, ...]:
        """Return the function that starts a kernel, and its arguments; the caller keeps the arrays alive until then."""
        key, flat = code.flatten(kernel, arguments)
        if (found := self.kernels.get(key)) is None:
            found = self._load(key, kernel, arguments)
        if (config := _configs.get((blocks, threads))) is None:
            config = _configs[blocks, threads] = self._config(grid=blocks, block=threads)
        return self._start, self._lender if self._elsewhere else self._stream, config, found, *flat

    def _load(self, key: Any, kernel: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        from cuda.core import ObjectCode

        with self._lock:
            if key not in self.kernels:
                made = code.build(kernel, code.types_of(arguments), self._capability, _THREADS)
                try:
                    self.kernels[key] = ObjectCode.from_cubin(made.cubin).get_kernel(made.name)
                except Exception as error:
                    raise failure(str(error), f"loading {kernel.__name__}") from error
        return self.kernels[key]


def unstarted(error: Exception, kernel: Callable[..., Any], blocks: int, threads: int) -> Exception:
    """Return the exception for a kernel that could not be started."""
    return failure(str(error), f"{kernel.__name__} on {blocks} blocks of {threads} threads")
