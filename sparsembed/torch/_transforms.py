"""Recorded programs, and kinds of differentiation that cannot pass through a table."""

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.fx import Proxy

ADVICE = "look rows up before it, or use torch.nn.Embedding or torch.nn.EmbeddingBag there"


def recording(value: Any) -> bool:
    """Return whether torch records a program, in which results of NumPy and the engine would be constants."""
    if torch.jit.is_tracing() or isinstance(value, Proxy):
        return True
    exporting = getattr(torch.compiler, "is_exporting", None)  # which not every torch has
    return exporting is not None and bool(exporting())


def faking() -> bool:
    """Return whether torch runs modules on tensors without numbers, or records what it dispatches (make_fx)."""
    if not torch._C._len_torch_dispatch_stack():
        return False
    keys = torch._C._TorchDispatchModeKey
    return any(torch._C._get_dispatch_mode(key) is not None for key in (keys.FAKE, keys.PROXY))


def refuse_tangents(*values: Any) -> None:
    """Refuse forward-mode derivatives of tensors that the engine reads: they would be lost."""
    if forward_ad._current_level < 0:
        return
    if any(isinstance(each, torch.Tensor) and forward_ad.unpack_dual(each).tangent is not None for each in values):
        raise NotImplementedError(f"forward-mode derivatives do not pass through a table; {ADVICE}")


def refuse_transform(leaf: Any, *values: Any) -> None:
    """Refuse a transform of torch.func that would have to pass through a table."""
    if leaf is not None or any(isinstance(each, torch.Tensor) and _wrapped(each) for each in values):
        raise NotImplementedError(
            "transforms of torch.func (grad, vmap, jvp, ...) pass through a table only where it is frozen, by "
            f"module.requires_grad_(False) or torch.no_grad(); {ADVICE}"
        )


def refuse_batched(grad_out: Any) -> None:
    """Refuse a batched gradient, and a gradient with a forward-mode tangent."""
    if _wrapped(grad_out) or torch._C._functorch.is_legacy_batchedtensor(grad_out):
        raise NotImplementedError(
            "the backward pass of a lookup takes one gradient at a time; call torch.autograd.grad in a loop, without "
            "is_grads_batched, and gradcheck without check_batched_grad"
        )
    refuse_tangents(grad_out)


def _wrapped(value: Any) -> bool:
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(value))


class Frozen(torch.autograd.Function):
    """Rows of a frozen table under transforms of torch.func: ids may be batched, and no gradient flows.

    `read` takes tensors whose first dimension can be anything, and returns one with the same first dimension.
    """

    @staticmethod
    def forward(read: Callable[..., Any], *tensors: Any) -> Any:
        return read(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return (None,) * len(ctx.needs_input_grad)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return None

    @staticmethod
    def vmap(info: Any, in_dims: Any, read: Callable[..., Any], *tensors: Any) -> Any:
        size = info.batch_size
        pairs = zip(tensors, in_dims[1:], strict=True)
        whole = [x.expand(size, *x.shape) if at is None else x.movedim(at, 0) for x, at in pairs]

        def folded(*batches: Any) -> Any:
            flat = [each.reshape(-1, *each.shape[2:]) if each.dim() > 1 else each for each in batches]
            rows = read(*flat)
            return rows.reshape(*batches[0].shape[:2], *rows.shape[1:]) if batches[0].dim() > 1 else rows

        return Frozen.apply(folded, *whole), 0


class Once(torch.autograd.Function):
    """Gradients that depend on `inputs` but cannot be differentiated again: doing so raises."""

    @staticmethod
    def forward(ctx: Any, compute: Callable[[], Any], *inputs: Any) -> Any:
        return compute()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(
            "a lookup has no second derivatives: its gradient is an array, without a graph; "
            "use torch.nn.Embedding or torch.nn.EmbeddingBag for them"
        )


def once(compute: Callable[[], Any], *inputs: Any) -> Any:
    """Return gradients without a graph, which raise if differentiated again (create_graph=True)."""
    if torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in inputs):
        return Once.apply(compute, *inputs)
    with torch.no_grad():
        return compute()
