"""The one place where torch.compile leaves a model: imported only while it compiles, for it loads torch._dynamo."""

from collections.abc import Callable
from typing import Any

import torch


@torch.compiler.disable
def outside(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function that torch.compile does not look into."""
    with torch._C.DisableTorchFunctionSubclass():
        return function(*arguments)
