"""Compiler options of all kernels, and the decorators that apply them."""

import contextlib
from collections.abc import Callable
from typing import Any

import numba
from numba.core import config

from ._compiling import announced
from ._signals import uninterrupted

try:
    from ._cache import KernelCache
except (ImportError, AttributeError):  # Numba moved its caching classes: recompile in every process
    KernelCache = None  # type: ignore[assignment,misc]

# error_model: Numba's default, "python", tests every division and stops vectorisation.
# nogil: kernels run beside Python and beside each other.  No fastmath: results are reproducible.
# _nrt=False: no reference counts.  Kernels never allocate, and a reference count is an atomic
# operation (one row of an SGD update in cache: 76 ns with reference counts, 25 ns without).
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "_nrt": False}

# Only kernels call helpers: without wrappers for Python and C a first update compiles in three quarters of the time.
_NO_WRAPPERS = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}

# Optional arguments of kernels are None when absent.  Numba specialises on None, so loops have no branch on them.
# For an option that is on or off, pass PRESENT or None.  PRESENT is an int, which both devices take as int64.
PRESENT = 1


def kernel(function: Callable[..., Any]) -> Any:
    """Compile an entry point, called from Python; compiled on first use and cached on disk."""
    dispatcher = numba.njit(**_OPTIONS)(function)
    if config.DISABLE_JIT:
        return dispatcher
    if KernelCache is not None:
        with contextlib.suppress(RuntimeError):  # no writable folder for the cache
            dispatcher._cache = KernelCache(dispatcher.py_func)
    dispatcher.compile = uninterrupted(announced(dispatcher.compile, lambda: dispatcher._cache.cache_path))
    return dispatcher


def return_type(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Return the Numba type of the result of a scalar function, given the Numba types of its arguments."""
    dispatcher = numba.njit(**_OPTIONS)(function)
    dispatcher.compile(arguments)
    return dispatcher.nopython_signatures[0].return_type


def inline(function: Callable[..., Any]) -> Any:
    """Compile a helper that becomes part of the kernel that calls it."""
    return numba.njit(**_OPTIONS, **_NO_WRAPPERS, forceinline=True)(function)


def routine(function: Callable[..., Any]) -> Any:
    """Compile a helper that kernels call: compiled once, not into each of them."""
    return numba.njit(**_OPTIONS, **_NO_WRAPPERS)(function)


def device(function: Callable[..., Any]) -> Any:
    """Compile a helper that becomes part of the CUDA kernel that calls it; needs numba-cuda."""
    from numba import cuda

    return cuda.jit(device=True, forceinline=True)(function)
