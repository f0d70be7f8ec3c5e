"""Arrays in device memory, as kernels see them: an address, a dtype and a shape."""

import math
from typing import Any

import numpy as np


class DeviceArray:
    """C-ordered numbers in device memory; the items of the first axis may lie further apart than they are long.

    Parameters
    ----------
    pointer : int
    shape : tuple of int
    dtype : dtype
    owner : object
        Whoever keeps the memory alive.
    stride : int, optional
        Numbers from one item of the first axis to the next.
    stream : int, optional
        The address of the stream that the memory was made on, in whose order it becomes valid, 1 for the default
        stream; None if it is somebody else's.
    readonly : bool
        Whether it must not be written to.
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
        """Numbers from the first to the last, those between rows included."""
        if not (self.shape and self.size):
            return self.size
        return int((len(self) - 1) * self.stride + math.prod(self.shape[1:]))

    @property
    def nbytes(self) -> int:
        """Bytes of the numbers."""
        return int(self.size * self.dtype.itemsize)

    def reshape(self, *shape: int) -> "DeviceArray":
        """The same numbers in another shape; they must lie one behind the other."""
        return DeviceArray(self.pointer, shape, self.dtype, self.owner, None, self.stream, self.readonly)

    def view(self, dtype: Any) -> "DeviceArray":
        """The same bytes as numbers of another dtype of the same size."""
        return DeviceArray(self.pointer, self.shape, dtype, self.owner, self.stride, self.stream, self.readonly)

    def part(self, start: int, count: int) -> "DeviceArray":
        """Rows, or numbers, from `start` on."""
        pointer, shape = self.pointer + start * self.stride * self.dtype.itemsize, (count, *self.shape[1:])
        return DeviceArray(pointer, shape, self.dtype, self.owner, self.stride, self.stream, self.readonly)

    def overlaps(self, other: "DeviceArray") -> bool:
        """Whether the memory between the first and the last number of both meets."""
        return bool(self.size and other.size and self.pointer < other._end and other.pointer < self._end)

    def to_host(self) -> Any:
        """Copy to a NumPy array; waits for what its stream has been given."""
        from . import queue as queues

        flat = DeviceArray(self.pointer, (self.extent,), self.dtype, self.owner, None, self.stream)
        found = queues.open_queue(self._device, self.stream or 1).download(flat)
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

        from . import queue as queues

        if self.stream is not None and stream != -1:  # None is the default stream
            mark = queues.open_queue(self._device, self.stream).mark()
            queues.open_queue(self._device, int(stream or 1)).after(mark)
        if options.get("dl_device") == self.__dlpack_device__():
            options["dl_device"] = None  # where it is already
        memory = Buffer.from_handle(self.pointer, self.extent * self.dtype.itemsize, owner=self)
        strides = (self.stride, *(math.prod(self.shape[k + 1 :]) for k in range(1, len(self.shape))))
        view = StridedMemoryView.from_buffer(memory, self.shape, strides[: len(self.shape)], dtype=self.dtype)
        return view.__dlpack__(stream=-1, **options)

    @property
    def _device(self) -> int:
        from . import queue as queues

        return int(queues.device_of(self.pointer))
