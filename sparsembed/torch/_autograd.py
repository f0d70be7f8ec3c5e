"""Lookups and pooling as autograd functions: sparse gradients for an optimizer, or a step at the end of backward."""

from typing import Any
from weakref import WeakValueDictionary

import torch

from ..bags import Bags
from ..gradient import RowGradient
from ._compile import untraced
from ._max_norm import version
from ._table import ParameterTable
from ._transforms import once, refuse_batched

# Autograd calls backward only if an input needs a gradient.  Ids and fused weights need none, but this leaf does.
ANCHOR = torch.zeros((), requires_grad=True)


class Lookup(torch.autograd.Function):
    """Rows of a table."""

    @staticmethod
    def forward(ctx: Any, leaf: Any, ids: Any, source: tuple[Any, ParameterTable, bool]) -> Any:
        ctx.weight, ctx.table, ctx.training = source  # in a tuple: autograd must not take the weight for an input
        ctx.save_for_backward(ids)
        return ctx.table.read(ids)

    @staticmethod
    @untraced
    def backward(ctx: Any, grad_out: Any) -> Any:
        (ids,) = ctx.saved_tensors
        refuse_batched(grad_out)
        if ctx.table.fused:
            if ctx.training:
                collect(ctx.table, ctx.weight, ids, grad_out.detach(), None)
            return None, None, None
        renew_gradient(ctx.weight)
        return once(lambda: ctx.table.gradient(ids, grad_out.detach()).to_torch(), grad_out), None, None


class Pool(torch.autograd.Function):
    """Pooled rows of a table."""

    @staticmethod
    def forward(ctx: Any, leaf: Any, factors: Any, ids: Any, bags: Bags, mode: str, source: Any) -> Any:
        weight, table, training = source
        ctx.weight, ctx.table, ctx.bags, ctx.mode = weight, table, bags, mode
        ctx.dropped = table.fused and not training  # the gradient of the table: see `TableModule`
        ctx.stand = version(weight), weight.data_ptr(), table.step  # a step of `module.table` changes only `table.step`
        ctx.save_for_backward(ids, factors)
        return table.read_pooled(bags, mode)

    @staticmethod
    @untraced
    def backward(ctx: Any, grad_out: Any) -> Any:
        _, given = ctx.saved_tensors  # raises if they were changed in place
        refuse_batched(grad_out)
        table, bags, mode = ctx.table, ctx.bags, ctx.mode
        stand = version(ctx.weight), ctx.weight.data_ptr(), table.step
        if (ctx.needs_input_grad[1] or (mode == "max" and not ctx.dropped)) and stand != ctx.stand:
            raise RuntimeError(
                "rows of the table were changed by an inplace operation (such as an optimizer step), or moved, between "
                'forward and backward, which need the same rows for per_sample_weights and for mode="max"'
            )
        gradient = factors = None
        if ctx.needs_input_grad[1]:
            factors = once(lambda: table.weights_gradient(bags, grad_out.detach()), grad_out, ctx.weight)
        if ctx.dropped:
            pass
        elif ctx.needs_input_grad[0] and table.fused:
            collect(table, ctx.weight, bags, grad_out.detach(), mode)
        elif ctx.needs_input_grad[0]:
            renew_gradient(ctx.weight)
            gradient = once(lambda: table.pooled_gradient(bags, grad_out.detach(), mode).to_torch(), grad_out, given)
        return gradient, factors, None, None, None, None


class Step:
    """The gradients that one backward pass has collected for a fused table."""

    def __init__(self, table: ParameterTable, weight: Any) -> None:
        self.table, self.weight = table, weight
        self.parts: list[tuple[Any, Any, str | None]] = []

    def take(self) -> None:
        """Take one step with all gradients."""
        lookups, grads, modes = map(list, zip(*self.parts, strict=True))
        mode = modes[0]
        table = self.table
        table.settle(self.weight)
        if len({*modes}) > 1 or (len(lookups) > 1 and table.scale_grad_by_freq):
            # Modules that share a weight may differ in mode; and torch counts ids for each lookup apart.
            each = [table.pooled_gradient(a, g, m) if m else table.gradient(a, g) for a, g, m in self.parts]
            table.apply(sum(each[1:], each[0]))
        elif mode is None:
            table.update(lookups, grads)
        else:
            table.update_pooled(lookups, grads, mode)
        table.wrote(self.weight)


class Pass:
    """The steps of one backward pass."""

    def __init__(self) -> None:
        self.steps: dict[ParameterTable, Step] = {}

    @untraced
    def finish(self) -> None:
        """Take all steps, or none if one of them cannot be taken."""
        for each in self.steps.values():
            each.table.ready(each.table._contents.rule)
        for each in self.steps.values():
            each.take()


# By the number of the pass.  Weak values: autograd's callback owns the Pass, so a backward pass that raises drops it.
PASSES: WeakValueDictionary[int, Pass] = WeakValueDictionary()


def collect(table: ParameterTable, weight: Any, lookup: Any, grad_out: Any, mode: str | None) -> None:
    """Note a gradient for the step at the end of this backward pass."""
    if not weight.requires_grad:  # frozen since it was looked up
        return
    task = torch._C._current_graph_task_id()
    found = PASSES.get(task)
    if found is None:
        found = PASSES[task] = Pass()
        torch.autograd.Variable._execution_engine.queue_callback(found.finish)
    step = found.steps.setdefault(table, Step(table, weight))
    step.parts.append((lookup, grad_out, mode))


def renew_gradient(parameter: Any) -> None:
    """Move a gradient without rows to memory of torch, which torch can resize when it accumulates."""
    grad = parameter.grad if parameter.is_leaf else None
    if grad is not None and grad.is_sparse and grad._nnz() == 0:
        rows, values = torch.empty((1, 0), dtype=torch.int64), torch.empty((0, grad.shape[1]), dtype=grad.dtype)
        grad.data = torch.sparse_coo_tensor(rows, values, grad.shape, check_invariants=False)


@untraced
def merge_gradient(parameter: Any) -> None:
    """Merge the rows of an accumulated gradient, so that its memory is bounded by the rows touched."""
    grad = parameter.grad
    if grad is None or not grad.is_sparse or grad.is_coalesced():
        return
    rows = grad._indices()[0].numpy()
    if (rows[1:] > rows[:-1]).all():  # coalesced, but torch drops the flag when it stores a gradient
        grad._coalesced_(True)
    else:
        grad.data = RowGradient.from_torch(grad).to_torch()  # in place: others may hold this tensor


@untraced
def refuse_gradient(parameter: Any) -> None:
    """Refuse a gradient of a fused weight that is not from lookups: fused steps would leave it out."""
    parameter.grad = None
    raise RuntimeError(
        "the weight of a fused table got a gradient from something other than its lookups, such as a layer that "
        "shares it, which a fused step cannot apply; detach it there, or make the module without fused=True"
    )
