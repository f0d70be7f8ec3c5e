"""The one place where torch.compile leaves a model: imported only while it compiles, for it loads torch._dynamo."""

from collections.abc import Callable
from typing import Any

import torch


@torch.compiler.disable
def outside(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return the result of a function that torch.compile does not trace."""
    with torch._C.DisableTorchFunctionSubclass():
        return function(*arguments)
