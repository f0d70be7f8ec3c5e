"""Launches that are prepared one by one and started together, so that a step is taken whole or not at all."""

from collections import deque
from collections.abc import Callable
from itertools import starmap
from operator import call, length_hint
from typing import Any

from .queue import unstarted


class Together:
    """A queue whose launches wait for `start`; all other methods are the queue's and act at once.

    Parameters
    ----------
    queue : Queue
    """

    def __init__(self, queue: Any) -> None:
        self._queue = queue
        self._calls: list[tuple[Any, ...]] = []
        self._given: list[tuple[Any, ...]] = []  # keeps the arrays of the launches alive

    def __getattr__(self, name: str) -> Any:
        return getattr(self._queue, name)

    def launch(self, kernel: Callable[..., Any], blocks: int, threads: int, *arguments: Any) -> None:
        """Compile a kernel, and store its launch for `start`."""
        self._calls.append(self._queue.ready(kernel, blocks, threads, *arguments))
        self._given.append((kernel, blocks, threads, arguments))

    def start(self, *more: tuple[Any, ...]) -> None:
        """Start all launches, then call `more`: tuples of a function and its arguments.

        Python handles signals only between instructions of its bytecode.  Between these calls there are none, so an
        interrupt comes before the first call or after the last one.
        """
        left = iter([*self._calls, *more])
        try:
            deque(starmap(call, left), maxlen=0)
        except Exception as error:
            place = len(self._calls) + len(more) - length_hint(left) - 1
            if place >= len(self._given):
                raise
            raise unstarted(error, *self._given[place][:3]) from error
        finally:
            self._calls, self._given = [], []
