"""convert: the embeddings of a model become tables, in place."""

from collections.abc import Iterator
from typing import Any

import torch

from .._options import Options
from ..rules import Rule
from . import _check
from ._autograd import merge_gradient, refuse_gradient
from ._bag import EmbeddingBag
from ._contents import memory_of
from ._embedding import Embedding
from ._module import TableModule
from ._table import ParameterTable
from ._weight import TABLES, TableWeight

_KINDS: dict[type, type[TableModule]] = {torch.nn.Embedding: Embedding, torch.nn.EmbeddingBag: EmbeddingBag}
_PARALLEL = (torch.nn.parallel.DistributedDataParallel, torch.nn.DataParallel)


def convert(model: Any, *, optimizer: Rule | None = None, fused: bool = False) -> tuple[Any, list[tuple[str, str]]]:
    """Make every `torch.nn.Embedding` and `torch.nn.EmbeddingBag` of a model a table, in place.

    Each such module becomes an `Embedding` or `EmbeddingBag` of this package and stays the same object, with the same
    parameter in the same memory: names in the ``state_dict``, weights, shared modules, shared weights, hooks of
    modules, frozen weights and the training mode stay as they are.

    Parameters
    ----------
    model : torch.nn.Module
        Of any depth; it may be an embedding itself.
    optimizer : Rule, optional
        Such as ``se.SparseAdam(lr=1e-3)``, for all tables; for `fused` only.
    fused : bool
        Step at the end of each backward pass.  Else give ``table_parameters(model)`` to an `Optimizer`.

    Returns
    -------
    model : torch.nn.Module
        The same object.
    left : list of (name, reason)
        What was left as it was, by its name in ``model.named_modules()``, and why.  Modules of this package are not
        listed: there is nothing to do.

    Raises
    ------
    TypeError, ValueError
        If `model` is no module, or `optimizer` and `fused` do not fit; nothing is converted then.

    Notes
    -----
    Left are: subclasses; modules whose weight is parametrized, pruned, of a subclass of `torch.nn.Parameter`, shared
    with a module that needs a dense gradient (a tied output layer), or has hooks or a dense gradient; modules with a
    ``forward``, parameters, buffers or modules of their own; modules inside `DistributedDataParallel` (convert before
    you wrap); float16 and bfloat16; weights that are not in host memory, or on the meta device; no rows.  Weights that
    the code of a model uses by itself, as in ``x @ self.embedding.weight.T``, cannot be seen from outside: the dense
    gradient that they get is refused by the first step.

    The gradients of tables are sparse, whatever ``sparse`` was: torch's dense optimizers refuse them.  `se.Adam` equals
    `torch.optim.Adam`, see :doc:`/which-adam`.  With ``max_norm`` all rows are shortened now, not when they are looked
    up.

    Cost: no copy of any weight; `fused` allocates the optimizer's state.

    Examples
    --------
    >>> import torch, sparsembed as se, sparsembed.torch as st
    >>> class Tied(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.users, self.words = torch.nn.Embedding(10, 4), torch.nn.Embedding(20, 4)
    ...         self.output = torch.nn.Linear(4, 20, bias=False)
    ...         self.output.weight = self.words.weight
    >>> model, left = st.convert(Tied())
    >>> model
    Tied(
      (users): Embedding(10, 4, sparse=True)
      (words): Embedding(20, 4)
      (output): Linear(in_features=4, out_features=20, bias=False)
    )
    >>> left
    [('words', 'its weight is output.weight, too, which gets dense gradients')]
    >>> optimizer = st.Optimizer(st.table_parameters(model), se.SparseAdam(lr=1e-3))
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    _check.mode_of_training(optimizer, fused, False)
    reasons = _Reasons(model, optimizer, fused)
    kinds, ours = tuple(_KINDS), TableModule
    found: dict[str, Any] = {k: v for k, v in model.named_modules() if isinstance(v, kinds) and not isinstance(v, ours)}
    left = {name: reason for name, module in found.items() if (reason := reasons.of(module)) is not None}
    left |= _sharing_with(left, found)
    chosen = [module for name, module in found.items() if name not in left]
    _make_tables([(module._parameters["weight"], _options(module)) for module in chosen], optimizer, fused)
    for module in chosen:
        # What the class needs comes first: an interrupt then leaves a module that works, as it was or as a table's.
        vars(module).update(fused=fused, _bound=(None, None), sparse=True)
        module.__class__ = _KINDS[type(module)]
        module._take_table(fused)
    return model, [(name, left[name]) for name in found if name in left]


def _options(module: Any) -> Options:
    return Options(module.padding_idx, module.max_norm, module.norm_type, module.scale_grad_by_freq)


def _make_tables(weights: list[tuple[Any, Options]], rule: Rule | None, fused: bool) -> None:
    """Make the tables of weights that have none; if memory runs out, none is made."""
    made = []
    try:
        for weight, options in weights:
            if TABLES.get(weight) is None:
                made.append(weight)
                ParameterTable(weight, rule, fused, options)
    except BaseException:
        for weight in made:
            TABLES.pop(weight, None)
        raise


def _sharing_with(left: dict[str, str], found: dict[str, Any]) -> dict[str, str]:
    """Return those who share a weight with a module that is left: torch's gradient of that is dense."""
    dense = {id(found[name]._parameters.get("weight")): f"{name}.weight".lstrip(".") for name in left}
    others = {name: id(module._parameters["weight"]) for name, module in found.items() if name not in left}
    return {name: f"its weight is {dense[key]}, too, which was left" for name, key in others.items() if key in dense}


class _Reasons:
    """Why modules of a model are left."""

    def __init__(self, model: Any, rule: Rule | None, fused: bool) -> None:
        self.rule, self.fused = rule, fused
        self.users: list[tuple[str, Any, Any, range]] = []  # name, module, tensor, and where the tensor lies
        self.parallel: set[int] = set()
        for name, module in model.named_modules():
            for key, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is not None:
                    self.users.append((f"{name}.{key}".lstrip("."), module, tensor, _memory(tensor)))
            if isinstance(module, _PARALLEL):
                self.parallel |= {id(each) for each in module.modules()}

    def of(self, module: Any) -> str | None:
        """Return why a module is left, or None."""
        return next(self._found(module), None)

    def _found(self, module: Any) -> Iterator[str]:
        weight = module._parameters.get("weight")
        if weight is None or torch.nn.utils.parametrize.is_parametrized(module):
            yield "its weight is computed from other parameters: it is parametrized, pruned or normalised"
            return
        if type(module) not in _KINDS:
            yield f"it is a {type(module).__name__}, a subclass, whose own code a table would not run"
        if more := sorted({*module._parameters, *module._buffers, *module._modules} - {"weight"}):
            yield f"it has {', '.join(more)} beside its weight"
        if "forward" in vars(module):
            yield "its forward was replaced"
        yield from self._of_weight(module, weight)
        yield from self._of_users(module, weight)
        if id(module) in self.parallel and (self.fused or not module.sparse):
            yield "it is in a parallel module, which expects the gradients of before; convert first, then wrap"

    def _of_weight(self, module: Any, weight: Any) -> Iterator[str]:
        """Yield what keeps a weight from being that of a table."""
        if type(weight) not in (torch.nn.Parameter, TableWeight):
            yield f"its weight is a {type(weight).__name__}, expected a torch.nn.Parameter"
            return
        if weight.is_meta:
            yield "its weight is on the meta device and has no numbers yet; load them first"
            return
        try:
            array = memory_of(weight)
            if torch.is_inference(weight):
                yield "its weight was made in inference mode, so it cannot be trained"
            _options(module).checked(len(array), self.rule, array.dtype)
        except (TypeError, ValueError) as error:
            yield str(error)
        if module.scale_grad_by_freq and getattr(module, "mode", None) == "max":
            yield "mode='max' does not scale gradients by frequency"
        hooks = [*(weight._backward_hooks or {}).values(), *(weight._post_accumulate_grad_hooks or {}).values()]
        others = [each for each in hooks if each is not merge_gradient and each is not refuse_gradient]
        if others and (self.fused or not module.sparse):
            yield "its weight has hooks, which expect a dense gradient"
        if weight.grad is not None and (self.fused or not weight.grad.is_sparse):
            yield "its weight has a gradient already; call zero_grad(set_to_none=True) first"

    def _of_users(self, module: Any, weight: Any) -> Iterator[str]:
        """Yield what else uses the memory of a weight, unless it is an embedding with the same options."""
        table, place = TABLES.get(weight), _memory(weight)
        options = _options(module)
        if table is not None and (table._contents.options, table.fused) != (options, self.fused):
            yield "its weight is that of a table with other options"
        if table is not None and self.fused and table.optimizer != self.rule:
            yield f"its weight is that of a table with another optimizer, {table.optimizer}"
        for name, owner, tensor, other in self.users:
            if tensor is not weight:
                if max(place.start, other.start) < min(place.stop, other.stop):
                    yield f"its memory is that of {name}, too, which is read and written without the table"
            elif not isinstance(owner, tuple(_KINDS)):
                yield f"its weight is {name}, too, which gets dense gradients"
            elif not isinstance(owner, TableModule) and _options(owner) != options:
                yield f"its weight is {name}, too, of a module with other options"


def _memory(tensor: Any) -> range:
    """Return the addresses of a tensor, from first to last; none for a tensor without memory of its own."""
    try:
        start, item = int(tensor.data_ptr()), tensor.element_size()
        span = 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    except (RuntimeError, NotImplementedError):
        return range(0)
    return range(start, start + span * item) if start and tensor.numel() else range(0)
