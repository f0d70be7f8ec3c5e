"""TableModule: the base of both modules, which keeps a parameter and its table together."""

from collections.abc import Callable
from typing import Any

import torch

from .. import _check as check
from .._cpu import memory
from .._options import Options
from ..rules import Rule
from ..table import EmbeddingTable
from . import _check
from ._autograd import ANCHOR, merge_gradient, refuse_gradient
from ._contents import memory_of
from ._table import ParameterTable, released, table_of
from ._weight import TABLES


def new_weight(num_embeddings: Any, embedding_dim: Any, device: Any, dtype: Any) -> Any:
    """Return an uninitialised weight on a cache line; NumPy asks for huge pages, which torch does not."""
    dtype = torch.get_default_dtype() if dtype is None else dtype
    _check.place(torch.empty(0).device if device is None else device, "device")  # which a context may set
    _check.dtype(dtype, "dtype")
    shape = (check.count(num_embeddings, "num_embeddings"), check.count(embedding_dim, "embedding_dim"))
    array = memory.empty(shape, "float32" if dtype == torch.float32 else "float64")
    check.size(*shape, array.dtype)
    return torch.from_numpy(array)


class TableModule(torch.nn.Module):
    """A module whose `weight` lies in the memory of a sparsembed table.

    `weight` may be replaced, moved or shared by any torch API; the table follows at its next use.

    A fused module steps with the gradients of what was looked up in training mode.  In eval mode results require grad
    as ever, so that backward runs, and gradients of per-sample weights are right; that of the table is dropped.
    """

    padding_idx: int | None
    max_norm: float | None
    norm_type: float
    scale_grad_by_freq: bool
    fused: bool

    def _make_table(self, rule: Rule | None, fused: bool, fresh: bool) -> None:
        """Finish the constructor: initial values, then the table around them."""
        self.fused = fused
        self._bound: tuple[Any, Any] = (None, None)
        if fresh:
            self.reset_parameters()
        weight = self._parameters["weight"]
        table = self._new_table(weight, rule)
        table.settle(weight)
        self._bound = (weight, table)
        self._watch(weight)

    def _take_table(self, fused: bool) -> None:
        """Become a module of the table of its weight, after its class was set."""
        self.fused = fused
        self._bound = (None, None)
        weight = self._parameters["weight"]
        self._bind(weight).settle(weight)

    def _new_table(self, weight: Any, rule: Rule | None) -> ParameterTable:
        table = ParameterTable(weight, rule, self.fused, self._options())
        table.users.add(self)
        return table

    def _options(self) -> Options:
        return Options(self.padding_idx, self.max_norm, self.norm_type, self.scale_grad_by_freq)

    def _current(self) -> tuple[Any, ParameterTable]:
        """Return the weight and its table, which lie in the same memory."""
        weight = self._parameters.get("weight")
        bound, table = self._bound
        if weight is not bound or weight is None or weight.data_ptr() != table.address:
            table = self._bind(weight)
        if table._contents.limit is not None:
            table.notice(weight)
        return weight, table

    def _settled(self) -> Any:
        """Return the weight for a recorded program, which reads the memory: all rows are up to date and clipped."""
        parameter, table = self._bound  # while torch records, its substitute for the weight has no memory
        if parameter is not None:
            table.flush()
            table.settle(parameter)
        return self._parameters["weight"]

    def __prepare_scriptable__(self) -> Any:
        """Refuse torch.jit.script, which cannot compile this module."""
        kind = "Embedding" if isinstance(self, torch.nn.Embedding) else "EmbeddingBag"
        raise NotImplementedError(
            "torch.jit.script cannot compile a table; use torch.export.export or torch.jit.trace, or put "
            f"torch.nn.{kind}.from_pretrained(module.weight.detach()) in its place first"
        )

    def _check_weight(self, weight: Any) -> None:
        """Refuse a weight that this module could not use in place of the one it has."""
        before = self._bound[1]
        its = TABLES.get(weight)
        if its is not None and not self._supersedes(its, weight):
            self._check_shared(its)
            return
        array = memory_of(weight)
        if self.fused and array.shape != (shape := before._contents.table.array.shape):
            raise ValueError(f"weight must keep its shape {shape}, got {array.shape}; make a new module")
        self._options().checked(len(array), before._contents.rule if self.fused else None, array.dtype)

    def _check_shared(self, table: ParameterTable) -> None:
        """Refuse to share a table with a module that has other options."""
        mine, its = (self._options(), self.fused), (table._contents.options, table.fused)
        if mine != its:
            raise ValueError(f"modules that share a weight must agree in options and in fused, got {mine} and {its}")
        before = self._bound[1]
        if self.fused and before is not None and before.optimizer != table.optimizer:
            raise ValueError(
                "fused modules that share a weight must have one optimizer, got "
                f"{before.optimizer} and {table.optimizer}"
            )

    def _supersedes(self, table: ParameterTable, weight: Any) -> bool:
        """Return whether a table can be replaced: it has no rule, and modules that set its options no longer use it."""
        if self.fused or table.optimizer is not None or table._contents.options == self._options():
            return False
        return not any(each is not self and each._parameters.get("weight") is weight for each in table.users)

    def register_parameter(self, name: str, param: Any) -> None:
        """Install a parameter, as ``module.weight = ...`` and ``load_state_dict(assign=True)`` do."""
        if name == "weight" and param is not None and "_bound" in self.__dict__ and self._bound[1] is not None:
            self._check_weight(param)
        super().register_parameter(name, param)

    def _bind(self, weight: Any) -> ParameterTable:
        """Return the table of a weight that is new or has new memory; make one if there is none."""
        if weight is None:
            raise RuntimeError(
                "weight is no parameter of this module any more; a table cannot be parametrized or pruned"
            )
        table = table_of(weight)
        if table is not None and self._supersedes(table, weight):
            table.retire()
            table = None
        if table is None and self.fused and self._bound[1] is not None:
            table = self._bound[1]  # its rule and state stay with the module
            table.relocate(weight)
            table.adopt(weight)
        elif table is None:
            table = self._new_table(weight, None)
        self._check_shared(table)
        table.users.add(self)
        self._bound = (weight, table)
        self._watch(weight)
        return table

    def _watch(self, weight: Any) -> None:
        """Register the hook of a parameter's gradient, once the parameter can have a gradient."""
        hook = refuse_gradient if self.fused else merge_gradient
        if weight.requires_grad and weight.is_leaf and hook not in (weight._post_accumulate_grad_hooks or {}).values():
            weight.register_post_accumulate_grad_hook(hook)

    def _leaf(self, weight: Any) -> Any:
        """Return the tensor for which autograd calls backward, or None if no gradient is recorded."""
        if not (weight.requires_grad and torch.is_grad_enabled()):
            return None
        self._watch(weight)
        parallel = torch.nn.parallel.DistributedDataParallel
        if self.fused and self.training and getattr(parallel, "_active_ddp_module", None) is not None:
            raise RuntimeError(
                "a fused table cannot be trained in DistributedDataParallel: each process would step with its own "
                "gradients; make the module without fused=True, and give it to sparsembed.torch.Optimizer"
            )
        return ANCHOR if self.fused else weight

    @property
    def table(self) -> EmbeddingTable:
        """The `sparsembed.EmbeddingTable` in the memory of `weight`, with the optimizer's state."""
        weight, table = self._current()
        table.settle(weight)
        return table

    @property
    def optimizer(self) -> Rule | None:
        """The rule that steps; of a fused module it can be set between steps, to change the learning rate."""
        return self._current()[1].optimizer

    @optimizer.setter
    def optimizer(self, rule: Rule) -> None:
        if not self.fused:
            raise ValueError("only a fused module has an optimizer of its own; set param_groups of the Optimizer")
        self._current()[1].optimizer = rule

    def __getattr__(self, name: str) -> Any:
        value = super().__getattr__(name)
        if name == "weight" and self.__dict__.get("_bound", (None,))[0] is value:
            try:
                table = self._current()[1]
            except (TypeError, ValueError):  # this memory cannot hold a table; the reader is about to repair that
                return value
            table.flush()
            table.suspect()
        return value

    def reset_parameters(self) -> None:
        """Draw new weights; the optimizer keeps its state."""
        super().reset_parameters()
        if self._bound[1] is not None:
            weight, table = self._current()
            table.settle(weight)

    def _apply(self, fn: Callable[[Any], Any], recurse: bool = True) -> Any:
        weight, table = self._current()
        probe = fn(torch.empty(0, dtype=weight.dtype))
        _check.place(probe.device, "weight")
        _check.dtype(probe.dtype, "weight.dtype")
        table.flush()
        with released(weight):
            super()._apply(fn, recurse)
        self._current()
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self._current()[1].flush()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        weight, table = self._current()
        table.flush()
        with released(weight):
            super()._load_from_state_dict(*arguments)
        weight, table = self._current()
        table.settle(weight)

    def __getstate__(self) -> dict[str, Any]:
        _, table = self._current()
        table.flush()
        state = self.__dict__.copy()
        state["_bound"] = (None, None)
        if self.fused:  # else the Optimizer copies the state
            state["_saved"] = (table.optimizer, table.saved())
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        rule, saved = state.pop("_saved", (None, None))
        super().__setstate__(state)
        table = self._bind(self._parameters["weight"])
        if rule is not None and table.optimizer is None:
            table.train(rule, table.checked(rule, saved), table.owner)
