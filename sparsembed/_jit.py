"""All jit options in one place."""

import contextlib
import functools
import signal
import threading
from collections.abc import Callable
from typing import Any

import numba
from numba.core import config

try:
    from ._cache import KernelCache
except (ImportError, AttributeError):  # Numba moved its caching classes: recompile in every process
    KernelCache = None  # type: ignore[assignment,misc]

# error_model: Numba's default, "python", tests every division and stops vectorisation.
# nogil: kernels run beside Python and beside each other.  No fastmath: results are reproducible.
# _nrt: kernels never allocate, so no array in them needs a reference count, which is an atomic
# operation (a row of an SGD update in cache: 76 ns with them, 25 ns without).
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "_nrt": False}


def kernel(function: Callable[..., Any]) -> Any:
    """Compile an entry point, called from Python; compiled on first use and cached on disk."""
    dispatcher = numba.njit(**_OPTIONS)(function)
    if config.DISABLE_JIT:
        return dispatcher
    if KernelCache is not None:
        with contextlib.suppress(RuntimeError):  # no writable place for a cache
            dispatcher._cache = KernelCache(dispatcher.py_func)
    dispatcher.compile = _uninterrupted(dispatcher.compile)
    return dispatcher


def _uninterrupted(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function that Ctrl-C interrupts only at its end.

    Numba that is interrupted while it compiles, or loads what it compiled, does neither any more in this process: all
    first uses then raise "RuntimeError: generator raised StopIteration".
    """

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        handler = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is not threading.main_thread() or not callable(handler):
            return function(*arguments)
        came: list[Any] = []
        try:
            signal.signal(signal.SIGINT, lambda *signal_and_frame: came.append(signal_and_frame))
            return function(*arguments)
        finally:
            signal.signal(signal.SIGINT, handler)
            if came:
                handler(*came[0])

    return call


def return_type(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Return the type of what a scalar function returns for arguments of some Numba types."""
    dispatcher = numba.njit(**_OPTIONS)(function)
    dispatcher.compile(arguments)
    return dispatcher.nopython_signatures[0].return_type


def inline(function: Callable[..., Any]) -> Any:
    """Compile a helper that becomes part of the kernel that calls it."""
    return numba.njit(**_OPTIONS, forceinline=True)(function)


def device(function: Callable[..., Any]) -> Any:
    """Compile a helper that becomes part of the CUDA kernel that calls it; needs numba-cuda."""
    from numba import cuda

    return cuda.jit(device=True, forceinline=True)(function)
