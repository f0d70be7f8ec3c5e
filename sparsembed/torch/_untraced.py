"""untraced: a function that torch looks at from outside only: no compiler in it, no detour of a subclass."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

F = TypeVar("F", bound=Callable[..., Any])


def untraced(function: F) -> F:
    """Make a function that torch.compile calls rather than looks into.

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
