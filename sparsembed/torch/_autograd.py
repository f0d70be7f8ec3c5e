"""Lookups and pooling as autograd functions: sparse gradients for an optimizer, or a step at the end of backward."""

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from ..bags import Bags
from ..gradient import RowGradient
from ._table import ParameterTable, stepped

# Ids need no gradient, and neither do the weights of a fused table: this leaf does, so that backward comes.
ANCHOR = torch.zeros((), requires_grad=True)


class Lookup(torch.autograd.Function):
    """Rows of a table."""

    @staticmethod
    def forward(ctx: Any, leaf: Any, ids: Any, weight: Any, table: ParameterTable) -> Any:
        ctx.weight, ctx.table = weight, table
        ctx.save_for_backward(ids)
        return table.lookup(ids)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Any) -> Any:
        (ids,) = ctx.saved_tensors
        if ctx.table.fused:
            collect(ctx.table, ctx.weight, ids, grad_out, None)
            return None, None, None, None
        renew_gradient(ctx.weight)
        return ctx.table.gradient(ids, grad_out).to_torch(), None, None, None


class Pool(torch.autograd.Function):
    """Pooled rows of a table."""

    @staticmethod
    def forward(ctx: Any, leaf: Any, factors: Any, ids: Any, bags: Bags, mode: str, weight: Any, table: Any) -> Any:
        ctx.weight, ctx.table, ctx.bags, ctx.mode, ctx.version = weight, table, bags, mode, weight._version
        ctx.save_for_backward(ids, factors)
        return table.pool(bags, mode)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Any) -> Any:
        _ = ctx.saved_tensors  # raises if they were changed in place
        table, bags, mode = ctx.table, ctx.bags, ctx.mode
        if (ctx.needs_input_grad[1] or mode == "max") and ctx.weight._version != ctx.version:
            raise RuntimeError(
                "rows of the table were changed by an inplace operation (such as an optimizer step) between forward "
                'and backward, which need the same rows for per_sample_weights and for mode="max"'
            )
        gradient = factors = None
        if ctx.needs_input_grad[1]:
            factors = table.weights_gradient(bags, grad_out)
        if table.fused:
            collect(table, ctx.weight, bags, grad_out, mode)
        elif ctx.needs_input_grad[0]:
            renew_gradient(ctx.weight)
            gradient = table.pooled_gradient(bags, grad_out, mode).to_torch()
        return gradient, factors, None, None, None, None, None


class Step:
    """What one backward pass has collected for a fused table."""

    def __init__(self, table: ParameterTable, weight: Any) -> None:
        self.table, self.weight = table, weight
        self.parts: list[tuple[Any, Any, str | None]] = []

    def finish(self) -> None:
        """Take one step with all of it."""
        lookups, grads, modes = map(list, zip(*self.parts, strict=True))
        mode = modes[0]
        table = self.table
        if len({*modes}) > 1 or (len(lookups) > 1 and table.scale_grad_by_freq):
            # Of modules that share a weight; or torch counts the ids of each lookup by itself.
            each = [table.pooled_gradient(a, g, m) if m else table.gradient(a, g) for a, g, m in self.parts]
            table.apply(sum(each[1:], each[0]))
        elif mode is None:
            table.update(lookups, grads)
        else:
            table.update_pooled(lookups, grads, mode)
        stepped(self.weight)


def collect(table: ParameterTable, weight: Any, lookup: Any, grad_out: Any, mode: str | None) -> None:
    """Note a gradient for the step at the end of this backward pass.

    Only the engine's callback keeps a `Step` alive: what a pass that raised has collected is gone with it.
    """
    task = torch._C._current_graph_task_id()
    step = table.pending.get(task)
    if step is None:
        step = table.pending[task] = Step(table, weight)
        torch.autograd.Variable._execution_engine.queue_callback(step.finish)
    step.parts.append((lookup, grad_out, mode))


def renew_gradient(parameter: Any) -> None:
    """Replace a gradient without rows by one in torch's memory, which torch can resize when it adds to it."""
    grad = parameter.grad if parameter.is_leaf else None
    if grad is not None and grad.is_sparse and grad._nnz() == 0:
        rows, values = torch.empty((1, 0), dtype=torch.int64), torch.empty((0, grad.shape[1]), dtype=grad.dtype)
        parameter.grad = torch.sparse_coo_tensor(rows, values, grad.shape, check_invariants=False)


def merge_gradient(parameter: Any) -> None:
    """Keep the gradient that accumulates in a parameter no larger than the rows it touches."""
    grad = parameter.grad
    if grad is None or not grad.is_sparse or grad.is_coalesced():
        return
    rows = grad._indices()[0].numpy()
    if (rows[1:] > rows[:-1]).all():  # torch forgets that of a gradient which it stores
        grad._coalesced_(True)
    else:
        parameter.grad = RowGradient.from_torch(grad).to_torch()
