"""Arrays in device memory, as kernels see them: an address, a dtype and a shape."""

import math
from typing import Any

import numpy as np

GPUS: Any = None  # the module `queues`, set when it is imported: `to_host` and DLPack need a queue


class DeviceArray:
    """C-ordered numbers in device memory; rows (items of the first axis) may have gaps between them.

    Parameters
    ----------
    pointer : int
    shape : tuple of int
    dtype : dtype
    owner : object
        The object that keeps the memory alive.
    stride : int, optional
        Distance from one row to the next, in numbers.
    stream : int, optional
        The address of the stream that allocated the memory, 1 for the default stream: later work of this stream
        finds the memory valid.  None if another library allocated it.
    readonly : bool
        Whether kernels must not write to the array.
    """

    __slots__ = ("dtype", "owner", "pointer", "readonly", "shape", "stream", "stride")
    _on_device = True

    def __init__(
        self,
        pointer: int,
        shape: tuple[int, ...],
        dtype: Any,
        owner: Any,
        stride: int | None = None,
        stream: int | None = None,
        readonly: bool = False,
    ) -> None:
        self.pointer, self.shape, self.dtype, self.owner = pointer, shape, np.dtype(dtype), owner
        self.stride = math.prod(shape[1:]) if stride is None else stride
        self.stream, self.readonly = stream, readonly

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """How many numbers."""
        return math.prod(self.shape)

    @property
    def extent(self) -> int:
        """Numbers from the first to the last, gaps between rows included."""
        if not (self.shape and self.size):
            return self.size
        return int((len(self) - 1) * self.stride + math.prod(self.shape[1:]))

    @property
    def nbytes(self) -> int:
        """Bytes of the numbers."""
        return int(self.size * self.dtype.itemsize)

    def reshape(self, *shape: int) -> "DeviceArray":
        """Return a view in another shape; the numbers must be contiguous."""
        return DeviceArray(self.pointer, shape, self.dtype, self.owner, None, self.stream, self.readonly)

    def view(self, dtype: Any) -> "DeviceArray":
        """Return a view of the same bytes in another dtype of the same size."""
        return DeviceArray(self.pointer, self.shape, dtype, self.owner, self.stride, self.stream, self.readonly)

    def part(self, start: int, count: int) -> "DeviceArray":
        """Return a view of `count` rows, or numbers, from `start` on."""
        pointer, shape = self.pointer + start * self.stride * self.dtype.itemsize, (count, *self.shape[1:])
        return DeviceArray(pointer, shape, self.dtype, self.owner, self.stride, self.stream, self.readonly)

    def overlaps(self, other: "DeviceArray") -> bool:
        """Return whether the memory of two arrays overlaps, gaps between rows included."""
        return bool(self.size and other.size and self.pointer < other._end and other.pointer < self._end)

    def to_host(self) -> Any:
        """Return a NumPy copy; waits for earlier work of the array's stream."""
        flat = DeviceArray(self.pointer, (self.extent,), self.dtype, self.owner, None, self.stream)
        found = GPUS.open_queue(self._device, self.stream or 1).download(flat)
        if self.extent == self.size:
            return found.reshape(self.shape)
        steps = [self.stride, *(math.prod(self.shape[k + 1 :]) for k in range(1, len(self.shape)))]
        return np.lib.stride_tricks.as_strided(found, self.shape, [step * found.itemsize for step in steps]).copy()

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise TypeError("an array on a GPU does not become a NumPy array by itself; call its to_host()")

    def __repr__(self) -> str:
        return f"DeviceArray(shape={self.shape}, dtype={self.dtype})"

    @property
    def _end(self) -> int:
        return int(self.pointer + self.extent * self.dtype.itemsize)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """What CuPy, torch and Numba adopt without a copy."""
        strides, size = None, self.dtype.itemsize
        if self.shape and self.size and self.stride != math.prod(self.shape[1:]):
            inner = [size * math.prod(self.shape[k + 1 :]) for k in range(1, len(self.shape))]
            strides = (self.stride * size, *inner)
        found = {"shape": self.shape, "typestr": self.dtype.str, "data": (self.pointer, self.readonly)}
        return found | {"strides": strides, "version": 3, "stream": self.stream}

    def __dlpack_device__(self) -> tuple[int, int]:
        """Say where the numbers lie, for JAX."""
        return 2, self._device

    def __dlpack__(self, *, stream: int | None = None, **options: Any) -> Any:
        """Lend the memory to JAX, whose stream waits for this one."""
        from cuda.core import Buffer
        from cuda.core.utils import StridedMemoryView

        if self.stream is not None and stream != -1:  # a stream of None is the default stream
            mark = GPUS.open_queue(self._device, self.stream).mark()
            GPUS.open_queue(self._device, int(stream or 1)).after(mark)
        if options.get("dl_device") == self.__dlpack_device__():
            options["dl_device"] = None  # the array is on this device already
        memory = Buffer.from_handle(self.pointer, self.extent * self.dtype.itemsize, owner=self)
        strides = (self.stride, *(math.prod(self.shape[k + 1 :]) for k in range(1, len(self.shape))))
        view = StridedMemoryView.from_buffer(memory, self.shape, strides[: len(self.shape)], dtype=self.dtype)
        return view.__dlpack__(stream=-1, **options)

    @property
    def _device(self) -> int:
        return int(GPUS.device_of(self.pointer))
