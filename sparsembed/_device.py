"""The way to a GPU: nothing of CUDA is imported before a device array, or device="cuda", shows up."""

import importlib
import importlib.util
import inspect
import re
import sys
from typing import Any

import numpy as np
from numba.core import config

_CUDA = (2, 13)  # DLPack's numbers for CUDA memory and managed memory
_HOST = (np.ndarray, np.generic, int, float, str, type(None))


def device_name(value: Any) -> str:
    """Check the device of a table."""
    if not isinstance(value, str) or not re.fullmatch(r"cpu|cuda(:\d+)?", value):
        raise ValueError(f"device must be 'cpu', 'cuda', or a numbered GPU such as 'cuda:1', got {value!r}")
    return value


def on_device(*values: Any) -> bool:
    """Whether any of some values lies in device memory."""
    # Every call asks: 0.3 us of the 6.5 that the smallest gather takes.
    for value in values:  # noqa: SIM110  (a generator costs as much again)
        if not isinstance(value, _HOST) and _is_there(value):
            return True
    return False


def _is_there(value: Any) -> bool:
    for framework, kind, there in (("torch", "Tensor", _tensor_is_there), ("jax", "Array", _jax_array_is_there)):
        module = sys.modules.get(framework)
        if module is not None and isinstance(value, getattr(module, kind, ())):
            return there(value)
    if isinstance(value, list | tuple):
        return any(_is_there(each) for each in value if not isinstance(each, _HOST))
    if (known := getattr(value, "_on_device", None)) is not None:  # of ours
        return bool(known)
    if hasattr(value, "__cuda_array_interface__"):
        return True
    device = getattr(value, "__dlpack_device__", None)
    return device is not None and device()[0] in _CUDA


def _tensor_is_there(tensor: Any) -> bool:
    return bool(tensor.is_cuda)


def _jax_array_is_there(array: Any) -> bool:
    platform = getattr(array, "platform", None)  # a tracer has none
    return platform is not None and platform() in ("gpu", "cuda")


class SignatureOfInit:
    """The ``__signature__`` of a class whose ``__new__`` takes anything: that of its ``__init__``."""

    def __get__(self, instance: Any, owner: Any) -> inspect.Signature:
        return inspect.Signature([*inspect.signature(owner.__init__).parameters.values()][1:])


def engine(module: str) -> Any:
    """Import a module of the CUDA engine, or say what is missing."""
    if not config.ENABLE_CUDASIM:
        missing = [name for name in ("numba_cuda", "cuda") if importlib.util.find_spec(name) is None]
        if missing:
            raise ImportError(
                f"arrays on a GPU need numba-cuda and cuda-core, and {' and '.join(missing)} cannot be imported; "
                "pip install 'sparsembed[cuda]', or 'sparsembed[cuda12]' for a driver of CUDA 12"
            )
    return importlib.import_module(f"sparsembed._cuda.{module}")
