"""Say that kernels are being compiled, where it takes so long that a user would wonder."""

import functools
import logging
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

LONG = 3.0  # seconds of compilation in a process; loading all kernels of a training loop from disk takes under one


class _Compiling:
    """What this process has spent on compilation."""

    def __init__(self) -> None:
        self.seconds, self.said, self.busy = 0.0, False, False

    def say(self, folder: str | None) -> None:
        """Say it, once in a process."""
        if self.said:
            return
        self.said = True
        later = f"loaded from {folder}" if folder else "used until it ends (no folder for a cache can be written to)"
        text = f"sparsembed compiles its kernels for this machine, which takes seconds; from then on they are {later}"
        logging.getLogger("sparsembed").info(text)
        if sys.stderr is not None and sys.stderr.isatty():
            sys.stderr.write(f"{text}. See sparsembed.warm_up.\n")
            sys.stderr.flush()


_COMPILING = _Compiling()


def announced(function: Callable[..., Any], folder: Callable[[], str | None]) -> Callable[..., Any]:
    """Return a function that compiles as `function` does, and says so after `LONG` seconds in all; see `folder`."""

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        state = _COMPILING
        if state.said or state.busy:
            return function(*arguments)
        begun, timer = time.perf_counter(), threading.Timer(max(LONG - state.seconds, 0.0), state.say, [folder()])
        timer.daemon = True
        state.busy = True
        try:
            _start(timer)
            return function(*arguments)
        finally:
            timer.cancel()
            if timer.is_alive():
                timer.join()  # no thread is left behind: whoever forks, or counts threads, would meet it
            state.seconds += time.perf_counter() - begun
            state.busy = False

    return call


def _start(timer: threading.Timer) -> None:
    try:
        timer.start()
    except RuntimeError:  # the system has no more threads: nothing is said
        return
