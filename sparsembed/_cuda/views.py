"""The caller's device arrays as the engine sees them, and results as the caller's kind of array.

No framework is imported: an object can only be a torch tensor if torch has been imported already.
"""

import sys
from typing import Any, NamedTuple

import numpy as np

from . import queue as queues
from .array import DeviceArray

LEGACY = 1  # the default stream, in the numbers of the interface, which has no 0
ADVICE = "move it to the device of the others, or all to the host"


class Caller(NamedTuple):
    """Whose arrays a call was made with: its kind of array, device and stream decide where results go."""

    kind: str  # "torch", "cupy", "numba", "jax", or "ours" for everything else
    device: int
    stream: int


def kind_of(value: Any) -> str:
    """Return the kind of a device array."""
    for name, attribute in (("torch", "Tensor"), ("cupy", "ndarray"), ("jax", "Array")):
        module = sys.modules.get(name)
        if module is not None and isinstance(value, getattr(module, attribute, ())):
            return name
    return "numba" if type(value).__module__.startswith("numba.") else "ours"


def view(value: Any, name: str) -> DeviceArray:
    """View a device array; rows of a matrix may lie apart, everything else must be contiguous."""
    if isinstance(value, DeviceArray):
        return value
    if kind_of(value) == "torch":
        if not value.is_cuda:
            raise TypeError(f"{name} is on {value.device}, the other arrays on a GPU; {ADVICE}")
        size = value.element_size()
        steps = tuple(step * size for step in value.stride())
        return _adopt(value.data_ptr(), tuple(value.shape), steps, _torch_dtype(value, name), value, name, False)
    # JAX's arrays never change, whatever they say of themselves, and only DLPack waits for their values.
    fixed = kind_of(value) == "jax"
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

        found = StridedMemoryView.from_dlpack(value, stream_ptr=LEGACY)
        try:
            dtype = np.dtype(found.dtype)
        except (NotImplementedError, TypeError):
            raise TypeError(f"{name} is of a dtype that kernels do not have; convert it to float32") from None
        strides = None if found.strides is None else tuple(step * dtype.itemsize for step in found.strides)
        readonly = fixed or bool(found.readonly)
        return _adopt(found.ptr, tuple(found.shape), strides, dtype, (value, found), name, readonly)
    what = f"a {type(value).__name__} in host memory"
    raise TypeError(f"{name} is {what}, the other arrays are on a GPU; {ADVICE}")


def row_major(value: Any) -> Any:
    """Return torch's and CuPy's arrays C-contiguous, a copy where they are not; others as they are."""
    kind = kind_of(value)
    if kind == "torch" and value.is_cuda:
        return value.detach().contiguous()
    return sys.modules["cupy"].ascontiguousarray(value) if kind == "cupy" else value


def converted(value: Any, dtype: Any) -> Any:
    """Return floats of torch and CuPy in a dtype, a copy where they have another; others as they are."""
    kind = kind_of(value)
    if kind == "torch" and value.is_cuda and value.is_floating_point():
        return value.detach().to(getattr(sys.modules["torch"], np.dtype(dtype).name))
    if kind == "cupy" and value.dtype.kind == "f":
        return value.astype(dtype, copy=False)
    return value


def _torch_dtype(value: Any, name: str) -> np.dtype[Any]:
    try:
        return np.dtype(str(value.dtype).removeprefix("torch."))
    except TypeError:
        raise TypeError(f"{name} is {value.dtype}, which kernels do not have; convert with .float()") from None


def _adopt(
    pointer: int, shape: tuple[int, ...], strides: Any, dtype: np.dtype[Any], owner: Any, name: str, readonly: bool
) -> DeviceArray:
    """Check where the numbers of an array lie; strides in bytes, None where they lie one behind the other."""
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
    """Say whose arrays these are; refuse those of several devices.  Whatever is None is left out.

    The stream is that of the first that is of a framework, else of the first that names one.
    """
    given = {name: value for name, value in arrays.items() if value is not None}
    places = {name: device_of(value, name) for name, value in given.items()}
    devices = {name: device for name, device in places.items() if device is not None}
    if len(set(devices.values())) > 1:
        where = ", ".join(f"{name} on cuda:{device}" for name, device in devices.items())
        raise TypeError(f"all arrays must be on one device, got {where}; {ADVICE}")
    values, device = list(given.values()), next(iter(devices.values()), 0)
    first = next((each for each in values if kind_of(each) != "ours"), None)
    others = [value for name, value in given.items() if name != "table"]  # which has a stream of its own
    streams = (stream_of(each, device) for each in (first, *others) if each is not None)
    return Caller(
        "ours" if first is None else kind_of(first),
        device,
        next((stream for stream in streams if stream is not None), LEGACY),
    )


def device_of(value: Any, name: str) -> int | None:
    """Return the number of the device of a device array; None where nobody knows, for want of memory."""
    kind = kind_of(value)
    if kind == "torch" and value.is_cuda:
        return int(value.device.index)
    if kind == "cupy":
        return int(value.device.id)
    found = view(value, name)
    return int(queues.device_of(found.pointer)) if found.size else None


def stream_of(value: Any, device: int) -> int | None:
    """Return the address of the caller's current stream, or that of an array; None if nothing says it."""
    if (current := current_stream(kind_of(value), device)) is not None:
        return current
    if isinstance(value, DeviceArray):
        return value.stream
    interface = getattr(value, "__cuda_array_interface__", None)
    if interface is None:
        return LEGACY if by_dlpack(value) else None  # where `view` has its values
    stream = interface.get("stream")
    return None if stream is None else int(stream)


def by_dlpack(value: Any) -> bool:
    """Whether only DLPack lends an array: its owner does not know which stream reads it."""
    if isinstance(value, DeviceArray) or (kind := kind_of(value)) in ("torch", "cupy", "numba"):
        return False
    lends = hasattr(value, "__cuda_array_interface__")
    return kind == "jax" or (not lends and hasattr(value, "__dlpack_device__"))


def current_stream(kind: str, device: int) -> int | None:
    """Return the address of a framework's current stream; None for one that has none."""
    if kind == "torch":
        return int(sys.modules["torch"].cuda.current_stream(device).cuda_stream) or LEGACY
    if kind == "cupy":
        with sys.modules["cupy"].cuda.Device(device):
            return int(sys.modules["cupy"].cuda.get_current_stream().ptr) or LEGACY
    return LEGACY if kind == "jax" else None  # JAX: where `view` has its values


def make(queue: Any, caller: Caller, shape: tuple[int, ...], dtype: Any) -> tuple[DeviceArray, Any]:
    """Make an uninitialised array of the caller's kind; returns a view of it, and what to hand over."""
    dtype = np.dtype(dtype)
    if caller.kind == "torch":
        torch = sys.modules["torch"]
        made = torch.empty(shape, dtype=getattr(torch, dtype.name), device=f"cuda:{caller.device}")
    elif caller.kind == "cupy":
        cupy = sys.modules["cupy"]
        with cupy.cuda.Device(caller.device):
            made = cupy.empty(shape, dtype)
    elif caller.kind == "numba":
        from numba import cuda

        made = cuda.device_array(shape, dtype)  # on the device that the queue has made current
    else:
        array: DeviceArray = queue.empty(shape, dtype)
        return array, array
    return view(made, "result"), made


def hand_over(array: Any, caller: Caller) -> Any:
    """Return what `make` made, in the end: JAX adopts memory that will not change."""
    if caller.kind == "jax" and isinstance(array, DeviceArray):
        jax = sys.modules["jax"]
        if not array.size:
            return jax.numpy.zeros(array.shape, array.dtype)
        return jax.dlpack.from_dlpack(array)
    return array
