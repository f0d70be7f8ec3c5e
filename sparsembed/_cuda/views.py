"""Views of the caller's device arrays, and the framework, device and stream of the caller."""

from typing import Any, NamedTuple

import numpy as np

from .._frameworks import CUPY, JAX, LEGACY, NUMBA, NUMPY, TORCH, Framework, framework_of
from . import queues
from .array import DeviceArray

ADVICE = "move it to the device of the others, or all to the host"


class Caller(NamedTuple):
    """The framework, device and stream of a call's arrays, which decide where results go."""

    framework: Framework
    device: int
    stream: int

    @property
    def kind(self) -> str:
        """The kind of array that results have: "torch", "cupy", "numba", "jax", or "ours" for everything else."""
        return self.framework.on_gpu


def view(value: Any, name: str) -> DeviceArray:
    """Return a view of a device array; rows of a matrix may have gaps, everything else must be contiguous."""
    if isinstance(value, DeviceArray):
        return value
    framework = framework_of(value)
    if (found := framework.strided(value, name)) is not None:
        return _adopt(*found, value, name, False)
    if framework is TORCH:
        raise TypeError(f"{name} is on {value.device}, the other arrays on a GPU; {ADVICE}")
    # JAX's arrays are immutable, also where their interface says otherwise, and only DLPack waits for their values.
    fixed = framework is JAX
    interface = None if fixed else getattr(value, "__cuda_array_interface__", None)
    if interface is not None:
        if interface.get("mask") is not None:
            raise TypeError(f"{name} must not be masked: its mask would be ignored; fill it first")
        (pointer, readonly), dtype = interface["data"], np.dtype(interface["typestr"])
        shape, strides = tuple(interface["shape"]), interface.get("strides")
        return _adopt(pointer, shape, strides, dtype, value, name, readonly)
    device = getattr(value, "__dlpack_device__", None)
    if device is not None and device()[0] in (2, 13):  # CUDA memory, managed memory
        from cuda.core.utils import StridedMemoryView

        memory = StridedMemoryView.from_dlpack(value, stream_ptr=LEGACY)
        try:
            dtype = np.dtype(memory.dtype)
        except (NotImplementedError, TypeError):
            raise TypeError(f"{name} is of a dtype that kernels do not have; convert it to float32") from None
        strides = None if memory.strides is None else tuple(step * dtype.itemsize for step in memory.strides)
        readonly = fixed or bool(memory.readonly)
        return _adopt(memory.ptr, tuple(memory.shape), strides, dtype, (value, memory), name, readonly)
    what = f"a {type(value).__name__} in host memory"
    raise TypeError(f"{name} is {what}, the other arrays are on a GPU; {ADVICE}")


def _adopt(
    pointer: int, shape: tuple[int, ...], strides: Any, dtype: np.dtype[Any], owner: Any, name: str, readonly: bool
) -> DeviceArray:
    """Return a view after a check of the layout; strides are in bytes, None if the array is contiguous."""
    if 0 in shape or strides is None:
        found = DeviceArray(pointer or 0, shape, dtype, owner, readonly=readonly)
    else:
        wanted, step = [], dtype.itemsize
        for extent in reversed(shape):
            wanted.append(step)
            step *= extent
        wanted = wanted[::-1]
        apart = [k for k, extent in enumerate(shape) if extent > 1 and strides[k] != wanted[k]]
        rows = len(shape) == 2 and apart == [0] and strides[0] >= wanted[0] and strides[0] % dtype.itemsize == 0
        if apart and not rows:
            raise ValueError(
                f"{name} must be C-contiguous on a GPU (rows of a table that is read may lie apart), got shape {shape} "
                f"and strides {tuple(strides)}; make it so with .contiguous() or ascontiguousarray"
            )
        stride = strides[0] // dtype.itemsize if apart else None
        found = DeviceArray(pointer, shape, dtype, owner, stride, readonly=readonly)
    if found.pointer % dtype.itemsize:
        raise ValueError(
            f"{name} must be aligned: its address is no multiple of the {dtype.itemsize} bytes of a number"
        )
    return found


def caller_of(**arrays: Any) -> Caller:
    """Return the caller of these arrays; refuse arrays on several devices, and ignore None.

    The stream is the current stream of the first array's framework; without a framework, the first stream that an
    array names.
    """
    given = {name: value for name, value in arrays.items() if value is not None}
    places = {name: device_of(value, name) for name, value in given.items()}
    devices = {name: device for name, device in places.items() if device is not None}
    if len(set(devices.values())) > 1:
        where = ", ".join(f"{name} on cuda:{device}" for name, device in devices.items())
        raise TypeError(f"all arrays must be on one device, got {where}; {ADVICE}")
    values, device = list(given.values()), next(iter(devices.values()), 0)
    first = next((each for each in values if framework_of(each) is not NUMPY), None)
    others = [value for name, value in given.items() if name != "table"]  # a table has a home stream
    streams = (stream_of(each, device) for each in (first, *others) if each is not None)
    return Caller(
        NUMPY if first is None else framework_of(first),
        device,
        next((stream for stream in streams if stream is not None), LEGACY),
    )


def device_of(value: Any, name: str) -> int | None:
    """Return the number of the device of a device array; None for an empty array, whose address says nothing."""
    if (device := framework_of(value).device_of(value)) is not None:
        return device
    found = view(value, name)
    return int(queues.device_of(found.pointer)) if found.size else None


def stream_of(value: Any, device: int) -> int | None:
    """Return the address of the caller's current stream, or else of the array's stream; None if neither is known."""
    if (current := framework_of(value).stream(device)) is not None:
        return current
    if isinstance(value, DeviceArray):
        return value.stream
    interface = getattr(value, "__cuda_array_interface__", None)
    if interface is None:
        return LEGACY if by_dlpack(value) else None  # on which `view` makes DLPack wait for the values
    stream = interface.get("stream")
    return None if stream is None else int(stream)


def by_dlpack(value: Any) -> bool:
    """Return whether an array is reached by DLPack only: the owner then does not know which stream reads it."""
    framework = framework_of(value)
    if isinstance(value, DeviceArray) or framework in (TORCH, CUPY, NUMBA):
        return False
    lends = hasattr(value, "__cuda_array_interface__")
    return framework is JAX or (not lends and hasattr(value, "__dlpack_device__"))
