"""Delay signals until a function has ended, and tell the exceptions of their handlers from others."""

import functools
import signal
import threading
from collections.abc import Callable
from typing import Any


def is_own(error: BaseException) -> bool:
    """Whether an exception, where it is caught, comes from the call itself, and not from a signal handler.

    Python runs handlers at the end of a call into C, too; what they raise looks like an exception of that call, but has
    a frame of its own.  Frames of ``__array__`` and its like belong to the call.
    """
    after = None if error.__traceback__ is None else error.__traceback__.tb_next
    return after is None or after.tb_frame.f_code.co_name.startswith("__")


def uninterrupted(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that runs Python's signal handlers (Ctrl-C, alarms) only after `function` has ended.

    An interrupt while Numba compiles a kernel, or loads one from the cache, breaks Numba for the rest of the process:
    each later compilation raises "RuntimeError: generator raised StopIteration".
    """

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            return function(*arguments)
        handlers = {int(number): signal.getsignal(number) for number in signal.valid_signals()}
        held: dict[int, Any] = {number: handler for number, handler in handlers.items() if callable(handler)}
        came: dict[int, Any] = {}
        try:
            for number in held:
                signal.signal(number, came.setdefault)
            return function(*arguments)
        finally:
            error = _restored(held)
            for number, frame in came.items():
                held[number](number, frame)
            if error is not None:
                raise error

    return call


def _restored(handlers: dict[int, Any]) -> BaseException | None:
    """Restore all signal handlers, even if a handler raises meanwhile; return the first exception, or None."""
    first: BaseException | None = None
    for number, handler in handlers.items():
        while signal.getsignal(number) is not handler:
            try:
                signal.signal(number, handler)
            except BaseException as error:
                first = first or error
    return first
