"""Scores of a module's rows: differentiable in the vectors, and in the table."""

from typing import Any

import torch

from ..bags import Bags
from . import _check
from ._autograd import collect, renew_gradient
from ._bag import ends_of
from ._compile import untraced
from ._max_norm import version
from ._module import TableModule
from ._transforms import faking, once, recording, refuse_batched, refuse_tangents, refuse_transform
from ._weight import unwatched


class Dot(torch.autograd.Function):
    """Dot products of the rows of bags and a vector of each bag."""

    @staticmethod
    def forward(ctx: Any, leaf: Any, x: Any, ids: Any, bags: Bags, shape: Any, source: Any) -> Any:
        weight, table, training = source  # in a tuple: autograd must not take the weight for an input
        ctx.weight, ctx.table, ctx.bags = weight, table, bags
        ctx.dropped = table.fused and not training  # the gradient of the table: see `TableModule`
        ctx.stand = version(weight), weight.data_ptr(), table.step  # a step of `module.table` changes only `table.step`
        ctx.save_for_backward(ids, x)
        return table.read_dot(bags, x.detach()).reshape(shape)

    @staticmethod
    @untraced
    def backward(ctx: Any, grad_scores: Any) -> Any:
        _, x = ctx.saved_tensors  # raises if they were changed in place
        refuse_batched(grad_scores)
        table, vectors = ctx.table, x.detach()
        bags = ctx.bags.with_weights(grad_scores.detach().reshape(-1))
        gradient = of_x = None
        if ctx.needs_input_grad[1]:
            if (version(ctx.weight), ctx.weight.data_ptr(), table.step) != ctx.stand:
                raise RuntimeError(
                    "rows of the table were changed by an inplace operation (such as an optimizer step), or moved, "
                    "between forward and backward, which need the same rows for the gradient of x"
                )
            of_x = once(lambda: table.read_pooled(bags, "sum"), grad_scores, ctx.weight)
        if ctx.dropped:
            pass
        elif ctx.needs_input_grad[0] and table.fused:
            collect(table, ctx.weight, bags, vectors, "sum")
        elif ctx.needs_input_grad[0]:
            renew_gradient(ctx.weight)
            gradient = once(lambda: table.pooled_gradient(bags, vectors, "sum").to_torch(), grad_scores, x)
        return gradient, of_x, None, None, None, None


def dot(module: TableModule, input: Any, x: Any, offsets: Any = None) -> Any:  # noqa: A002  (torch's name)
    """Scores: the dot product of each row of a bag with the vector of the bag.

    Parameters
    ----------
    module : Embedding or EmbeddingBag
        Of this package; fused or not.  The mode of an `EmbeddingBag` has no part in this.
    input : int32 or int64 tensor of shape (n, k), or (len(input),) with `offsets`
        A bag of k ids in each row.
    x : float tensor of shape (n, embedding_dim), or (num_bags, embedding_dim)
        One vector for each bag; differentiable.
    offsets : int32 or int64 tensor of shape (num_bags,), optional
        Where each bag starts, from 0; with the end of the last where the module has `include_last_offset`.

    Returns
    -------
    tensor of shape (n, k), or (len(input),)
        ``(module(input) * x[:, None]).sum(-1)`` for an `Embedding`, in the dtype of the weight; 0 for the padding.

    Raises
    ------
    TypeError
        If `module` is none of this package, ids or offsets are no integers, or `x` no tensor of floats.
    ValueError
        If a shape or offsets do not fit.
    IndexError
        If an id is out of range.
    NotImplementedError
        For transforms of `torch.func` and forward-mode derivatives that would have to pass through the table.

    See Also
    --------
    sparsembed.dot : the same without autograd.

    Notes
    -----
    No tensor of shape (n, k, embedding_dim) is made, forward or backward, but in programs that torch records (export,
    trace) and under transforms of `torch.func`.  The gradient of the table is sparse; that of
    a fused module becomes part of its step.  For one score a row give `input` the shape (n, 1).  The gradient of `x`
    reads the rows again, so they must not change between forward and backward.

    Examples
    --------
    >>> import torch, sparsembed as se, sparsembed.torch
    >>> embedding = sparsembed.torch.Embedding(10, 4)
    >>> x = torch.ones(2, 4, requires_grad=True)
    >>> scores = sparsembed.torch.dot(embedding, torch.tensor([[3, 5, 1], [7, 0, 0]]), x)
    >>> scores.shape
    torch.Size([2, 3])
    >>> scores.sum().backward()
    >>> embedding.weight.grad.coalesce().indices()
    tensor([[0, 1, 3, 5, 7]])
    """
    if not isinstance(module, TableModule):
        raise TypeError(
            f"module must be a sparsembed.torch.Embedding or EmbeddingBag, got {type(module).__name__}; "
            "sparsembed.torch.convert makes them of torch's"
        )
    return _recorded(module, input, x, offsets) if recording(input) else _dot(module, input, x, offsets)


def _recorded(module: Any, ids: Any, x: Any, offsets: Any, frozen: bool = False) -> Any:
    """Return the scores of torch's own functions, for a program that torch records; these make all rows."""
    weight = module._settled()
    weight = weight.detach() if frozen else weight
    _check_shapes(ids, x, offsets, weight.shape[1])
    with unwatched(weight):
        rows = torch.nn.functional.embedding(ids, weight)
    if module.padding_idx is not None:  # rows, not scores: 0 * NaN is NaN in their gradient
        rows = rows.masked_fill((ids == module.padding_idx)[..., None], 0)
    if offsets is None:
        vectors = x[:, None]
    else:
        last = getattr(module, "include_last_offset", False)
        ends = offsets if last else torch.nn.functional.pad(offsets, (0, 1), value=len(ids))
        vectors = x.repeat_interleave(ends.diff(), dim=0, output_size=len(ids))
    return (rows * vectors.to(weight.dtype)).sum(-1)


def _check_shapes(ids: Any, x: Any, offsets: Any, dim: int) -> None:
    """Refuse shapes that do not fit, which torch's functions would broadcast."""
    if ids.dim() not in (1, 2):
        raise ValueError(f"input must have one or two dimensions, got {ids.dim()}")
    if ids.dim() == 1 and offsets is None:
        raise ValueError(
            "input must have shape (n, k), or (n,) with offsets, got one dimension; for one id a vector use "
            "input[:, None]"
        )
    if ids.dim() == 2 and offsets is not None:
        raise ValueError("offsets must be None for an input of shape (num_bags, ids in each)")
    if x.dim() != 2 or x.shape[1] != dim or (offsets is None and x.shape[0] != ids.shape[0]):
        wanted = f"({'num_bags' if offsets is not None else ids.shape[0]}, {dim})"
        raise ValueError(f"x must have shape {wanted}, one vector for each bag, got {tuple(x.shape)}")


@untraced
def _dot(module: Any, ids: Any, x: Any, offsets: Any) -> Any:
    if faking():
        return _recorded(module, ids, x, offsets)
    _check.ids(ids)
    if not isinstance(x, torch.Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, torch.Tensor) else type(x).__name__
        raise TypeError(f"x must be a tensor of floats, got {got}")
    _check.place(x.device, "x")
    if torch._C._are_functorch_transforms_active():
        weight = module._parameters["weight"]
        refuse_transform(module._leaf(weight), weight)
        return _recorded(module, ids, x, offsets, frozen=True)
    weight, table = module._current()
    refuse_tangents(weight, x)
    _check_shapes(ids, x, offsets, table.dim)
    flat, ends = ends_of(ids, offsets, getattr(module, "include_last_offset", False))
    bags = Bags(flat, ends)
    if len(x) != bags.num_bags:
        wanted = (bags.num_bags, table.dim)
        raise ValueError(f"x must have shape {wanted}, one vector for each bag, got {tuple(x.shape)}")
    x, leaf = x.to(weight.dtype), module._leaf(weight)
    try:
        if leaf is None and not (x.requires_grad and torch.is_grad_enabled()):
            return table.read_dot(bags, x.detach()).reshape(ids.shape)
        return Dot.apply(leaf, x, flat, bags, ids.shape, (weight, table, module.training))
    except IndexError:
        _check.outside(ids, table.num_rows)
        raise
