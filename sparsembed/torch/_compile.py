"""untraced: a decorator for functions that torch.compile calls but does not trace."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

F = TypeVar("F", bound=Callable[..., Any])


def untraced(function: F) -> F:
    """Return a function that torch.compile calls but does not trace.

    ``torch.compiler.disable`` as a decorator would import the compiler with this package.  Inside, a weight is a plain
    tensor: the engine brings the rows that it uses up to date by itself.
    """

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        if torch.compiler.is_compiling():
            from ._graph_break import outside

            return outside(function, *arguments)
        with torch._C.DisableTorchFunctionSubclass():
            return function(*arguments)

    return call  # type: ignore[return-value]
