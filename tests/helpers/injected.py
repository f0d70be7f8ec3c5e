"""Exceptions at a line of the package's code, and what they must leave whole."""

import functools
import linecache
import sys
import threading
from pathlib import Path

import numpy as np

import sparsembed as se

SOON = 60.0  # seconds: nobody else wants the lock, so it is free at once or never
PACKAGE = str(Path(se.__file__).parent)


def held(table):
    """What a table holds, as it lies: reading it changes nothing."""
    its = table._contents
    parts = [its.table.array, its.state, its.row_state, its.last, its.steps[:1]]
    return b"".join(np.ascontiguousarray(part).tobytes() for part in parts)


class Injected(KeyboardInterrupt):
    """Stands for Ctrl-C."""


class OutOfMemoryError(MemoryError):
    """Stands for memory that runs out."""


class Tracer:
    """Raise at the k-th line of the package that a call runs; `seen` counts them."""

    def __init__(self, k, error):
        self.k, self.error, self.seen, self.where = k, error, 0, None

    def __call__(self, frame, event, _):
        return self.line if frame.f_code.co_filename.startswith(PACKAGE) else None

    def line(self, frame, event, _):
        if event == "line" and not (leaves_a_with(frame) or enters_a_try(frame)):
            if self.seen == self.k:
                self.seen += 1
                self.where = f"{frame.f_code.co_filename.removeprefix(PACKAGE)}:{frame.f_lineno}"
                raise self.error
            self.seen += 1
        return self.line


def leaves_a_with(frame):
    """Whether a block of `with` ends here: Python looks for no signal between its last call and ``__exit__``."""
    return _leaves_a_with(frame.f_code, frame.f_lineno, frame.f_lasti)


@functools.cache
def _leaves_a_with(code, number, place):
    if place == min(start for start, _, line in code.co_lines() if line == number):
        return False
    return linecache.getline(code.co_filename, number).lstrip().startswith("with ")


def enters_a_try(frame):
    """Whether this is ``try:``: it does nothing, so nothing is raised there.

    Python 3.11 leaves it out of the table of handlers, those of the `with` around it, too.
    """
    return linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip() == "try:"


def raised(call, k, error):
    """Run a call with an error at its k-th line; returns the tracer, and whether the error came out."""
    tracer, came = Tracer(k, error), False
    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        call()
    except (Injected, MemoryError):
        came = True
    finally:
        sys.settrace(before)
    return tracer, came


def free_for_others(table):
    """Whether another thread gets the lock of a table."""
    found = []

    def take():
        found.append(table._contents.lock.acquire(timeout=SOON))
        if found[0]:
            table._contents.lock.release()

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    return found[0]
