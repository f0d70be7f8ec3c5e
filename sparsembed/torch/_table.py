"""ParameterTable: the table that lies in the memory of a torch parameter."""

from collections.abc import Mapping
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch.utils.weak import WeakTensorKeyDictionary

from .. import _memory, _norms
from .. import _validate as check
from .._arrays import as_array
from .._backward import max_gradient, pooled_gradients, row_gradient
from .._options import Options
from ..bags import Bags
from ..gradient import RowGradient
from ..pooling import per_sample_weights_gradient
from ..rules import Rule
from ..table import EmbeddingTable
from . import _check

# Not an attribute of the parameter, which torch would pickle with it.
_TABLES: Any = WeakTensorKeyDictionary()


class ParameterTable(EmbeddingTable):
    """A table in the memory of a parameter, whose padding row keeps what it holds, as torch's does."""

    def __init__(self, parameter: Any, rule: Rule | None, fused: bool, options: Options) -> None:
        _check.place(parameter.device, "weight")
        _check.dtype(parameter.dtype, "weight.dtype")
        array = check.weight(parameter)
        check.count(len(array), "num_embeddings")
        options = options.checked(len(array), rule, array.dtype)
        check.in_place(array, "weight", "a contiguous copy")
        self.fused = fused
        self.owner: Any = lambda: None  # a weak reference to the Optimizer that steps
        self.pending: WeakValueDictionary[int, Any] = WeakValueDictionary()  # by backward pass
        self.hooked = False
        self.address = int(parameter.data_ptr())
        self._hold(array, rule, options)
        self.adopt(parameter)

    def _constrain(self) -> None:
        if self._limit is not None:
            _norms.clip_rows(self._weight, self._limit)

    def refuse(self, rule: Rule, saved: Mapping[str, Any]) -> None:
        """Refuse a rule or a state that does not fit: `saved` holds "step" and each slot, or nothing."""
        self._options.checked(self.num_rows, rule, self._weight.dtype)
        slots = [*rule.slots, *rule.row_slots]
        if saved and {*saved} != {"step", *slots}:
            raise KeyError(f"the state of a table with {rule} must be 'step' and {slots}, got {sorted(saved)}")
        for name in slots if saved else ():
            expected = self._weight.shape if name in rule.slots else self._weight.shape[:1]
            if (got := tuple(saved[name].shape)) != expected:
                raise ValueError(f"the state {name!r} must have shape {expected}, got {got}")
        if saved:
            check.count(int(saved["step"]), "the step of a state", least=0)

    def attach(self, rule: Rule, saved: Mapping[str, Any], owner: Any) -> None:
        """Start or restore the state of a rule; see `refuse`."""
        self.refuse(rule, saved)
        self.flush()
        self._hold(self._weight, rule, self._options)
        if saved:
            slots = {k: np.asarray(v, self._weight.dtype) for k, v in saved.items() if k != "step"}
            self.load_state_dict({"weight": self._weight, "step": saved["step"], **slots})
        self.owner = owner

    def saved(self) -> dict[str, Any]:
        """Return copies of the state, for `attach`."""
        return {"step": self.step, **{name: _memory.copy(array) for name, array in self.state.items()}}

    def follow(self, parameter: Any) -> None:
        """Go where the parameter's memory is, if it has moved; state goes along, in the new dtype."""
        if parameter.data_ptr() == self.address:
            return
        _check.place(parameter.device, "weight")
        _check.dtype(parameter.dtype, "weight.dtype")
        array = check.weight(parameter)
        with self._reading():
            if self._history is not None and self._history.newest:
                raise RuntimeError(
                    "weight got other memory while some of its rows had steps to catch up with; read module.weight, "
                    "which brings them up to date, before you replace or share its memory"
                )
        if array.shape != self._weight.shape and self._optimizer is not None:
            raise ValueError(f"weight must keep its shape {self._weight.shape}, got {array.shape}; make a new module")
        self.address = int(parameter.data_ptr())
        if (array.shape, array.dtype) == (self._weight.shape, self._weight.dtype):
            self._weight = array
            self._begin()
            return
        state, row_state, steps = self._state, self._row_state, self._steps
        self._hold(array, self._optimizer, self._options)
        if self._optimizer is not None:
            self._state[...], self._row_state[...], self._steps = state, row_state, steps
            self._begin()

    def adopt(self, parameter: Any) -> None:
        """Be the table of this parameter, too."""
        _TABLES[parameter] = self

    def settle(self) -> None:
        """Scale down rows that were written from outside, if there is a largest norm."""
        self._constrain()

    def pooled_gradient(self, bags: Bags, grad_out: Any, mode: str) -> RowGradient:
        """Return the coalesced gradient of `pool` as a value."""
        padding = check.padding(self.padding_idx, self.num_rows)
        with self._reading() as lag:
            if mode == "max":
                return max_gradient([bags], [grad_out], self._weight, padding, lag, self.scale_grad_by_freq)
            where = (self.num_rows, padding, self._weight, self.dim, self._weight.dtype)
            plan, grads = pooled_gradients([bags], [grad_out], mode, *where, lag, self.scale_grad_by_freq)
        return row_gradient(plan, grads, self.num_rows, padding, "numpy")

    def weights_gradient(self, bags: Bags, grad_out: Any) -> Any:
        """Return the gradient of per-sample weights, mode sum."""
        if self._history is None:
            return per_sample_weights_gradient(self._weight, bags, grad_out, padding_idx=self.padding_idx)
        # Rows that may have steps to catch up with: bring those of the batch up to date in a copy.
        rows = Bags(np.arange(len(bags.ids)), bags.offsets, bags.per_sample_weights)
        gradient = per_sample_weights_gradient(self.lookup(bags.ids), rows, as_array(grad_out, "grad_out"))
        if self.padding_idx is not None:
            gradient[bags.ids == self.padding_idx] = 0
        return torch.from_numpy(gradient)


def table_of(parameter: Any) -> ParameterTable | None:
    """Return the table of a parameter, or None if it is no table."""
    table: ParameterTable | None = _TABLES.get(parameter)
    if table is not None:
        table.follow(parameter)
    return table


def stepped(parameter: Any) -> None:
    """Tell autograd that the engine wrote to a parameter, so that stale graphs are refused."""
    if not parameter.is_inference():
        torch.autograd.graph.increment_version(parameter)
