"""ParameterTable: the table that lies in the memory of a torch parameter."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from weakref import WeakSet, ref

import numpy as np
import torch

from .. import _memory
from .. import _validate as check
from .._arrays import Array, as_array
from .._backward import max_gradient, pooled_gradients, row_gradient
from .._options import Options
from .._saved import check_next
from ..bags import Bags
from ..gradient import RowGradient
from ..pooling import per_sample_weights_gradient
from ..rules import Rule
from ..table import EmbeddingTable
from . import _check, _state
from ._limited import LimitedTable, version
from ._weight import TABLES, watch


def memory_of(parameter: Any) -> Array:
    """Return the memory of a parameter; refuse what no table can lie in."""
    _check.place(parameter.device, "weight")
    _check.dtype(parameter.dtype, "weight.dtype")
    with torch._C.DisableTorchFunctionSubclass():  # for a table that is on its way here
        array = check.weight(parameter)
    check.count(len(array), "num_embeddings")
    check.in_place(array, "weight", "a contiguous copy")
    return array


class ParameterTable(LimitedTable):
    """A table in the memory of a parameter, whose padding row keeps what it holds, as torch's does."""

    _parameter: Callable[[], Any]  # a weak reference
    address: int

    def __init__(self, parameter: Any, rule: Rule | None, fused: bool, options: Options) -> None:
        array = memory_of(parameter)
        options = options.checked(len(array), rule, array.dtype)
        self.fused = fused
        self.owner: Any = lambda: None  # a weak reference to the Optimizer that steps
        self.users: WeakSet[Any] = WeakSet()  # modules whose weight this is, or was
        self._place(parameter)
        self._hold(array, rule, options)
        self._seen = version(parameter)
        self.adopt(parameter)

    def _place(self, parameter: Any) -> None:
        """Note whose memory this is, and where."""
        self._commit(self._place_of(parameter))

    @staticmethod
    def _place_of(parameter: Any) -> dict[str, Any]:
        return {"_parameter": ref(parameter), "address": int(parameter.data_ptr())}

    @property
    def _weight(self) -> Array:
        """The parameter's memory, wherever that is now: torch frees the old one when it moves a storage in place."""
        parameter = self._parameter()
        if parameter is not None and parameter.data_ptr() != self.address:
            self.follow(parameter)
        return self._array

    @_weight.setter
    def _weight(self, array: Array) -> None:
        self._array = array

    def _commit(self, found: dict[str, Any]) -> None:
        if "_weight" in found:  # which is a property here
            found = {"_array" if name == "_weight" else name: value for name, value in found.items()}
        super()._commit(found)

    def _constrain(self, weight: Array, limit: Any, padding_idx: int | None) -> None:
        """Leave rows as they are: a forward pass may be what meets a new weight first, and must not write to it."""
        self.suspect(limit)

    def _ready_to_restore(self, sources: dict[str, Array]) -> int:
        """Restore rows as they are."""
        self.suspect()
        return -1

    def checked(self, rule: Rule, saved: Any) -> dict[str, Any]:
        """Return a saved state as `attach` takes it; refuse a rule or a state that does not fit."""
        return _state.checked(self._weight, self._options, rule, saved)

    def attach(self, rule: Rule, state: Mapping[str, Any], owner: Any) -> None:
        """Start a rule, with a state that was `checked` or afresh; refuses nothing."""
        with self._lock:
            self.flush()
            step, slots = (state["step"], state) if state else (0, None)
            self._hold(self._weight, rule, self._options, step, slots, owner=owner)

    def train(self, rule: Rule, state: Mapping[str, Any], owner: Any) -> None:
        """Start a rule as `attach` does, and watch the parameter if rows catch up now."""
        self.attach(rule, state, owner)
        if self._catches_up:
            watch(self._parameter())

    @property
    def slot_names(self) -> tuple[str, ...]:
        """Names of the slots, without bringing rows up to date."""
        rule = self._optimizer
        return () if rule is None else (*rule.slots, *rule.row_slots)

    def saved(self) -> dict[str, Any]:
        """Return copies of the state, for `checked` and `attach`; all of one step."""
        with self._lock:
            self.flush()
            return {"step": self.step, **{name: _memory.copy(array) for name, array in self._slots().items()}}

    def state_dict(self) -> dict[str, Any]:
        """Return copies of everything that training changes, as tensors, which ``torch.load(weights_only=True)`` reads.

        `load_state_dict` takes tensors and NumPy arrays.
        """
        return {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in super().state_dict().items()}

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Copy and pickle as the table alone: the parameter goes with its module."""
        saved = self.__getstate__()
        state = saved["state_dict"].items()
        saved["state_dict"] = {k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in state}
        return _alone, (saved,)

    def ready(self, rule: Rule | None) -> None:
        """Refuse what the next step could not do, before any of several tables steps."""
        if rule is None or type(rule) is not type(self._optimizer):
            raise ValueError(f"a table's rule must keep the state of {self._optimizer}, got {rule}")
        self._trainable()
        rule.scalars(self.step + 1, self._weight.dtype)
        check_next(rule, self.step)

    def follow(self, parameter: Any) -> None:
        """Go where the parameter's memory is, if it has moved; state goes along, in the new dtype."""
        if parameter.data_ptr() == self.address:
            return
        array = memory_of(parameter)
        with self._lock:
            if self._some_missed:
                raise RuntimeError(
                    "weight got other memory while some of its rows had steps to catch up with; read module.weight, "
                    "which brings them up to date, before you replace or share its memory"
                )
            held, place = self._array, self._place_of(parameter)
            if array.shape != held.shape and self._optimizer is not None:
                raise ValueError(f"weight must keep its shape {held.shape}, got {array.shape}; make a new module")
            self.suspect()
            if (array.shape, array.dtype) == (held.shape, held.dtype):
                self._commit({"_weight": array, **place})
                return
            self._hold(array, self._optimizer, self._options, self.step, self._slots(), **place)

    def adopt(self, parameter: Any) -> None:
        """Be the table of this parameter, too."""
        self._place(parameter)
        TABLES[parameter] = self
        if self._catches_up:
            watch(parameter)

    def retire(self) -> None:
        """Be no parameter's table any more: its modules look for one again when they are used."""
        self._parameter = lambda: None
        for each in list(self.users):
            if each._bound[1] is self:
                each._bound = (None, self)

    def is_left(self, parameter: Any) -> bool:
        """Whether all modules whose weight this parameter was have another one now."""
        users = list(self.users)
        return bool(users) and all(each._parameters.get("weight") is not parameter for each in users)

    def pooled_gradient(self, bags: Bags, grad_out: Any, mode: str) -> RowGradient:
        """Return the coalesced gradient of `read_pooled` as a value."""
        if mode == "max" and self.written and len(bags.ids):
            return self._winners_gradient(bags, grad_out)
        padding = check.padding(self.padding_idx, self.num_rows)
        with self._guard:
            lag = self._missed()
            if mode == "max":
                return max_gradient([bags], [grad_out], self._weight, padding, lag, self.scale_grad_by_freq)
            where = (self.num_rows, padding, self._weight, self.dim, self._weight.dtype)
            plan, grads = pooled_gradients([bags], [grad_out], mode, *where, lag, self.scale_grad_by_freq)
        return row_gradient(plan, grads, self.num_rows, padding, "numpy")

    def weights_gradient(self, bags: Bags, grad_out: Any) -> Any:
        """Return the gradient of per-sample weights, mode sum."""
        if self.written and len(bags.ids):
            return self._weights_gradient(bags, grad_out)
        if self._history is None:
            return per_sample_weights_gradient(self._weight, bags, grad_out, padding_idx=self.padding_idx)
        # Rows that may have steps to catch up with: bring those of the batch up to date in a copy.
        rows = Bags(np.arange(len(bags.ids)), bags.offsets, bags.per_sample_weights)
        gradient = per_sample_weights_gradient(self.lookup(bags.ids), rows, as_array(grad_out, "grad_out"))
        if self.padding_idx is not None:
            gradient[bags.ids == self.padding_idx] = 0
        return torch.from_numpy(gradient)


def _alone(saved: dict[str, Any]) -> EmbeddingTable:
    table = EmbeddingTable.__new__(EmbeddingTable)
    table.__setstate__(saved)
    return table


def table_of(parameter: Any) -> ParameterTable | None:
    """Return the table of a parameter, or None if it is no table."""
    table: ParameterTable | None = TABLES.get(parameter)
    if table is not None:
        table.follow(parameter)
    return table


@contextlib.contextmanager
def released(parameter: Any) -> Iterator[None]:
    """Refer to a parameter as torch.utils.swap_tensors wants it, not weakly, while a module converts it."""
    if not torch.__future__.get_swap_module_params_on_conversion() or (table := TABLES.pop(parameter, None)) is None:
        yield
        return
    table._parameter = lambda: parameter
    try:
        yield
    finally:  # another tensor is in it now, of another class, and without the hooks that Python still shows
        TABLES[parameter], table._parameter = table, ref(parameter)
        if (hooks := parameter._post_accumulate_grad_hooks) is not None:
            parameter._post_accumulate_grad_hooks = hooks
        if table._catches_up:
            watch(parameter)


def trainable(parameter: Any, position: int | None = None) -> ParameterTable:
    """Return the table of a parameter; refuse what is not trained by an Optimizer."""
    where = "a parameter" if position is None else f"params[{position}]"
    table = table_of(parameter)
    if table is None:
        raise ValueError(
            f"{where} is no weight of sparsembed.torch.Embedding or EmbeddingBag; give it to a torch optimizer: "
            "sparsembed.torch.dense_parameters(model) are those"
        )
    if table.fused:
        raise ValueError(f"{where} is the weight of a fused table, which steps in backward; leave it out")
    return table
