"""untraced: a function that torch.compile leaves a graph for, without loading the compiler."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

F = TypeVar("F", bound=Callable[..., Any])


def untraced(function: F) -> F:
    """Make a function that torch.compile calls rather than looks into.

    ``torch.compiler.disable`` as a decorator would import the compiler with this package.
    """

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        if torch.compiler.is_compiling():
            from ._graph_break import outside

            return outside(function, *arguments)
        return function(*arguments)

    return call  # type: ignore[return-value]
