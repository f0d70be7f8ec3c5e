"""Frameworks whose arrays the library takes and returns: one class each.

No framework is imported here: an object can be a torch tensor only if torch has already been imported.  A new
framework is one class in this file; only this file detects the framework of an array.
"""

import sys
from typing import Any

import numpy as np

from ._check import not_converted
from ._signals import is_own
from ._typing import Array

LEGACY = 1  # the default stream in the CUDA array interface, which does not allow 0
# Integers that are converted to int64; a uint64 that does not fit becomes negative, and so out of range.
_NARROW = {"int8", "int16", "uint8", "uint16", "uint32", "uint64"}
_CUDA = (2, 13)  # DLPack's numbers for CUDA memory and managed memory


class Framework:
    """NumPy, and all arrays without a class of their own here, which are viewed through the standard protocols."""

    name = "numpy"
    on_gpu = "ours"  # the kind of array of results on a GPU
    takes_any = True  # whether `of_numpy` copies no array, wherever it starts

    @property
    def module(self) -> Any:
        """The imported module of the framework."""
        if self.name not in sys.modules:
            raise ImportError(
                f"these arrays were made of arrays of {self.name}, which is not imported; import it first"
            )
        return sys.modules[self.name]

    def is_on_gpu(self, value: Any) -> bool:
        """Whether a value, or any value in a list, is in device memory."""
        if isinstance(value, list | tuple):
            return any(framework_of(each).is_on_gpu(each) for each in value if type(each) not in HOST)
        if (known := getattr(value, "_on_device", None)) is not None:  # our own classes
            return bool(known)
        if hasattr(value, "__cuda_array_interface__"):
            return True
        device = getattr(value, "__dlpack_device__", None)
        return device is not None and device()[0] in _CUDA

    def to_numpy(self, value: Any, name: str) -> Array:
        """View an array in host memory as a NumPy array, without a copy; lists become arrays."""
        if isinstance(value, np.ma.MaskedArray) or (isinstance(value, list | tuple) and any(map(_is_masked, value))):
            raise TypeError(
                f"{name} must not be a masked array: its mask, which marks nulls, would be ignored; fill or drop them "
                "first, with .filled(number) or .compressed()"
            )
        if isinstance(value, np.ndarray):
            return np.asarray(value)  # drops memmap and other subclasses
        if (instead := getattr(value, "_instead", None)) is not None:  # our own classes
            article = "an" if type(value).__name__[0] in "AEIO" else "a"
            raise TypeError(f"{name} must be an array, got {article} {type(value).__name__}; {instead}")
        if hasattr(value, "__cuda_array_interface__"):
            raise TypeError(f"{name} is in CUDA memory, expected host memory; copy it to the host first")
        try:
            if hasattr(value, "__dlpack__") and not hasattr(value, "__array__"):
                return np.from_dlpack(value)
            return np.asarray(value)
        except (MemoryError, TypeError):
            raise
        except Exception as error:  # a conversion written by the user can raise anything
            if not is_own(error):
                raise
            raise not_converted(error, value, name) from error

    def plain(self, value: Any, tracked: bool = True) -> Array | None:
        """View an array in host memory as a NumPy array at the cost of one call; None where `to_numpy` is needed.

        Without `tracked` also None for what `refuse_tracked` refuses.
        """
        return None

    def refuse_tracked(self, value: Any, name: str, instead: str = "pass rows.grad") -> None:
        """Refuse an array with a gradient of its own, which is no gradient."""

    def of_numpy(self, result: Array) -> Any:
        """Return a fresh NumPy array as an array of this framework, without a copy."""
        return result

    def of_gpu(self, result: Any) -> Any:
        """Return a result on a GPU, an array that `empty` made, as an array of this framework."""
        return result

    def empty(self, queue: Any, shape: tuple[int, ...], dtype: np.dtype[Any], device: int) -> Any:
        """Make an uninitialised array on a GPU."""
        return queue.empty(shape, dtype)

    def device_of(self, value: Any) -> int | None:
        """Return the number of the GPU that an array is on, or None if the framework does not say."""
        return None

    def stream(self, device: int) -> int | None:
        """Return the address of the current stream of a GPU; None if the framework has no current stream."""
        return None

    def contiguous(self, value: Any) -> Any:
        """Return a GPU array in C order, as a copy if needed; unchanged if the framework cannot copy it."""
        return value

    def widened(self, value: Any) -> Any:
        """Return a GPU array of narrow or unsigned integers as int64; unchanged if the framework cannot convert."""
        return value

    def converted(self, value: Any, dtype: np.dtype[Any]) -> Any:
        """Return a GPU array of floats in a dtype, as a copy if needed; unchanged if the framework cannot convert."""
        return value

    def strided(self, value: Any, name: str) -> tuple[int, tuple[int, ...], tuple[int, ...], np.dtype[Any]] | None:
        """Return (address, shape, strides in bytes, dtype) of a GPU array; None if the standard protocols are used."""
        return None


class _Torch(Framework):
    name = on_gpu = "torch"

    def is_on_gpu(self, value: Any) -> bool:
        return bool(value.is_cuda)

    def to_numpy(self, value: Any, name: str) -> Array:
        """View a tensor as a NumPy array; a tensor with a lazy negation or conjugation is copied."""
        if (array := self.plain(value)) is not None:
            return array
        if value.device.type != "cpu":
            raise TypeError(f"{name} is on {value.device}, expected host memory; move it with .cpu()")
        if str(value.dtype) == "torch.bfloat16":
            raise TypeError(f"{name} is bfloat16, which NumPy does not have; convert with .float()")
        if value.layout is not self.module.strided:
            raise TypeError(
                f"{name} is a tensor of layout {value.layout}, expected a dense one; convert with .to_dense(), or make "
                "a gradient of it with se.RowGradient.from_torch"
            )
        try:
            return np.asarray(value.detach().resolve_conj().resolve_neg())
        except (TypeError, RuntimeError) as error:  # a nested tensor, or one of a transform of torch.func
            if not is_own(error):
                raise
            raise TypeError(f"{name} is a tensor that NumPy cannot view: {error}") from error

    def plain(self, value: Any, tracked: bool = True) -> Array | None:
        try:
            if value.requires_grad:
                if not tracked:
                    return None
                value = value.detach()
            array: Array = value.numpy()
        except Exception as error:  # on a GPU, sparse, negated lazily, or within a transform of torch.func
            if not is_own(error):
                raise
            return None
        return array

    def refuse_tracked(self, value: Any, name: str, instead: str = "pass rows.grad") -> None:
        if value.requires_grad:
            raise TypeError(
                f"{name} requires grad, so it is a parameter or looked-up rows; {instead}, "
                "or .detach() it if these are the numbers that you mean"
            )

    def of_numpy(self, result: Array) -> Any:
        return self.module.from_numpy(_writeable(result))

    def empty(self, queue: Any, shape: tuple[int, ...], dtype: np.dtype[Any], device: int) -> Any:
        return self.module.empty(shape, dtype=getattr(self.module, dtype.name), device=f"cuda:{device}")

    def device_of(self, value: Any) -> int | None:
        return int(value.device.index) if value.is_cuda else None

    def stream(self, device: int) -> int | None:
        return int(self.module.cuda.current_stream(device).cuda_stream) or LEGACY

    def contiguous(self, value: Any) -> Any:
        return value.detach().contiguous() if value.is_cuda else value

    def widened(self, value: Any) -> Any:
        narrow = value.is_cuda and str(value.dtype).removeprefix("torch.") in _NARROW
        return value.detach().to(self.module.int64) if narrow else value

    def converted(self, value: Any, dtype: np.dtype[Any]) -> Any:
        if value.is_cuda and value.is_floating_point():
            return value.detach().to(getattr(self.module, dtype.name))
        return value

    def strided(self, value: Any, name: str) -> tuple[int, tuple[int, ...], tuple[int, ...], np.dtype[Any]] | None:
        if not value.is_cuda:
            return None
        try:
            dtype = np.dtype(str(value.dtype).removeprefix("torch."))
        except TypeError:
            raise TypeError(f"{name} is {value.dtype}, which kernels do not have; convert with .float()") from None
        size = value.element_size()
        return value.data_ptr(), tuple(value.shape), tuple(step * size for step in value.stride()), dtype


class _Jax(Framework):
    name = on_gpu = "jax"
    takes_any = False

    def is_on_gpu(self, value: Any) -> bool:
        platform = getattr(value, "platform", None)  # a tracer has no platform
        return platform is not None and platform() in ("gpu", "cuda")

    def of_numpy(self, result: Array) -> Any:
        return self.module.dlpack.from_dlpack(_writeable(result))

    def of_gpu(self, result: Any) -> Any:
        """Return a JAX array that adopts the memory, which is not written to any more."""
        return (
            self.module.dlpack.from_dlpack(result)
            if result.size
            else self.module.numpy.zeros(result.shape, result.dtype)
        )

    def stream(self, device: int) -> int | None:
        return LEGACY  # `views.view` asks JAX for values on this stream


class _Cupy(Framework):
    name = on_gpu = "cupy"

    def is_on_gpu(self, value: Any) -> bool:
        return True

    def empty(self, queue: Any, shape: tuple[int, ...], dtype: np.dtype[Any], device: int) -> Any:
        with self.module.cuda.Device(device):
            return self.module.empty(shape, dtype)

    def device_of(self, value: Any) -> int | None:
        return int(value.device.id)

    def stream(self, device: int) -> int | None:
        with self.module.cuda.Device(device):
            return int(self.module.cuda.get_current_stream().ptr) or LEGACY

    def contiguous(self, value: Any) -> Any:
        return self.module.ascontiguousarray(value)

    def widened(self, value: Any) -> Any:
        return value.astype(np.int64) if value.dtype.name in _NARROW else value

    def converted(self, value: Any, dtype: np.dtype[Any]) -> Any:
        return value.astype(dtype, copy=False) if value.dtype.kind == "f" else value


class _Numba(Framework):
    on_gpu = "numba"

    def empty(self, queue: Any, shape: tuple[int, ...], dtype: np.dtype[Any], device: int) -> Any:
        from numba import cuda

        return cuda.device_array(shape, dtype)  # on the device that the queue has made current


NUMPY, TORCH, JAX, CUPY, NUMBA = Framework(), _Torch(), _Jax(), _Cupy(), _Numba()
_CLASSES = ((TORCH, "torch", "Tensor"), (JAX, "jax", "Array"), (CUPY, "cupy", "ndarray"))
HOST = {np.ndarray, np.memmap, int, float, bool, str, type(None), np.int32, np.int64, np.float32, np.float64}
_known: dict[type, Framework] = dict.fromkeys([*HOST, list, tuple], NUMPY)  # most values need one dict lookup only


def framework_of(value: Any) -> Framework:
    """Return the framework of an array."""
    return _known.get(type(value)) or _find(value)


def _find(value: Any) -> Framework:
    for framework, module, name in _CLASSES:
        known = sys.modules.get(module)
        if known is not None and isinstance(value, getattr(known, name, ())):
            _known[type(value)] = framework
            return framework
    return NUMBA if type(value).__module__.startswith("numba.") else NUMPY


def as_array(value: Any, name: str) -> Array:
    """View any array in host memory as a NumPy array, without a copy; lists become arrays."""
    return value if type(value) is np.ndarray else framework_of(value).to_numpy(value, name)


def by_name(name: str) -> Framework:
    """Return a framework by name."""
    return next(each for each in (NUMPY, TORCH, JAX) if each.name == name)


def _is_masked(value: object) -> bool:
    return isinstance(value, np.ma.MaskedArray)


def _writeable(array: Array) -> Array:
    """Return an array, copied if it is read-only: torch and JAX cannot mark memory read-only."""
    return array if array.flags.writeable else array.copy()
