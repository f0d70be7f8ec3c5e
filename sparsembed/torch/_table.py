"""ParameterTable: the table that lies in the memory of a torch parameter."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any
from weakref import WeakSet, ref

import numpy as np
import torch

from .._cpu import memory
from .._cpu.inputs import check_writeable
from .._engine import CPU
from .._frameworks import as_array
from .._options import Options
from .._saved import check_next
from ..bags import Bags
from ..gradient import RowGradient
from ..pooling import per_sample_weights_gradient, pooled_gradient
from ..rules import Rule
from ..rules._rule import keeps_state
from ..table import EmbeddingTable
from . import _optimizer_state
from ._contents import ParameterContents, memory_of, place_of
from ._max_norm import LimitedTable, stepped, version
from ._weight import TABLES, watch


class ParameterTable(LimitedTable):
    """A table in the memory of a parameter; the padding row keeps its values, as in torch."""

    _contents: ParameterContents

    def __init__(self, parameter: Any, rule: Rule | None, fused: bool, options: Options) -> None:
        array = memory_of(parameter)
        options = options.checked(len(array), rule, array.dtype)
        self.fused = fused
        self.users: WeakSet[Any] = WeakSet()  # modules whose weight this is, or was
        parts = CPU.hold(None, array, rule, options, constrain=False)
        own = {"owner": lambda: None, "written": parts["limit"] is not None}
        self._contents = ParameterContents(CPU, parts | place_of(parameter) | own)
        self._seen = version(parameter)
        self.adopt(parameter)

    @property
    def address(self) -> int:
        """Where the parameter's memory was when it was last looked at."""
        return self._contents.address

    @property
    def owner(self) -> Any:
        """A weak reference to the Optimizer that steps."""
        return self._contents.owner

    def checked(self, rule: Rule, saved: Any) -> dict[str, Any]:
        """Return a saved state as `attach` takes it; refuse a rule or a state that does not fit."""
        return _optimizer_state.checked(self._contents.table.array, self._contents.options, rule, saved)

    def attach(self, rule: Rule, state: Mapping[str, Any], owner: Any) -> None:
        """Start a rule, with a state that was `checked` or afresh; refuses nothing."""
        with self._contents.lock:
            self.flush()
            step, slots = (state["step"], state) if state else (0, None)
            self._contents.restart(rule, step, slots, owner=owner)

    def train(self, rule: Rule, state: Mapping[str, Any], owner: Any) -> None:
        """Start a rule as `attach` does, and watch the parameter if rows catch up now."""
        self.attach(rule, state, owner)
        if self._contents.catches_up:
            watch(self._contents.parameter())

    @property
    def slot_names(self) -> tuple[str, ...]:
        """Names of the slots, without bringing rows up to date."""
        rule = self._contents.rule
        return () if rule is None else (*rule.slots, *rule.row_slots)

    def saved(self) -> dict[str, Any]:
        """Return copies of the state, for `checked` and `attach`; all of one step."""
        contents = self._contents
        with contents.lock:
            self.flush()
            slots = contents.engine.columns(contents)
            return {"step": self.step, **{name: memory.copy(array) for name, array in slots.items()}}

    def state_dict(self) -> dict[str, Any]:
        """Return copies of everything that training changes, as tensors, which ``torch.load(weights_only=True)`` reads.

        `load_state_dict` takes tensors and NumPy arrays.  Hyperparameters, such as a learning rate that was changed,
        are not part of it: set ``module.optimizer`` after loading.
        """
        return {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in super().state_dict().items()}

    def load_state_dict(self, state_dict: Mapping[str, Any], *, strict: bool = True) -> None:
        """Restore what `state_dict` returned, and tell autograd, so that stale graphs are refused."""
        super().load_state_dict(state_dict, strict=strict)
        self._written()

    def set_rows(self, ids: Any, vectors: Any, *, reset: bool = False) -> None:
        """Replace some rows, and tell autograd."""
        super().set_rows(ids, vectors, reset=reset)
        self._written()

    def _written(self) -> None:
        if (parameter := self._contents.parameter()) is not None:
            stepped(parameter)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Copy and pickle as the table alone: the parameter goes with its module."""
        saved = self.__getstate__()
        state = saved["state_dict"].items()
        saved["state_dict"] = {k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in state}
        return _alone, (saved,)

    def ready(self, rule: Rule | None) -> None:
        """Raise if the next step would fail, before any of several tables steps."""
        contents = self._contents
        if rule is None or not keeps_state(rule, contents.rule):
            raise ValueError(f"a table's rule must keep the state of {contents.rule}, got {rule}")
        check_writeable(contents.table)
        rule.scalars(self.step + 1, contents.table.dtype)
        check_next(rule, self.step)

    def relocate(self, parameter: Any) -> None:
        """Use the parameter's new memory if it has moved."""
        self._contents.relocate(parameter)

    def adopt(self, parameter: Any) -> None:
        """Become the table of this parameter, too."""
        self._contents.commit(place_of(parameter))
        TABLES[parameter] = self
        if self._contents.catches_up:
            watch(parameter)

    def retire(self) -> None:
        """Give up the parameter: the modules of the table find or make another table at their next use."""
        self._contents.parameter = lambda: None
        for each in list(self.users):
            if each._bound[1] is self:
                each._bound = (None, self)

    def is_left(self, parameter: Any) -> bool:
        """Return whether all modules that used this parameter have another weight now."""
        users = list(self.users)
        return bool(users) and all(each._parameters.get("weight") is not parameter for each in users)

    def pooled_gradient(self, bags: Bags, grad_out: Any, mode: str) -> RowGradient:
        """Return the coalesced gradient of `read_pooled` as a value."""
        if mode == "max" and self.written and len(bags.ids):
            return self._winners_gradient(bags, grad_out)
        contents = self._contents
        where = (CPU, contents.table, self.num_rows, contents.padding, self.scale_grad_by_freq, contents)
        return pooled_gradient(bags, grad_out, mode, *where)

    def weights_gradient(self, bags: Bags, grad_out: Any) -> Any:
        """Return the gradient of per-sample weights, mode sum."""
        if self.written and len(bags.ids):
            return self._weights_gradient(bags, grad_out)
        if self._contents.history is None:
            return per_sample_weights_gradient(self._contents.table.array, bags, grad_out, padding_idx=self.padding_idx)
        # Rows may have missed steps: bring the rows of the batch up to date in a copy.
        rows = Bags(np.arange(len(bags.ids)), bags.offsets, bags.per_sample_weights)
        gradient = per_sample_weights_gradient(self.lookup(bags.ids), rows, as_array(grad_out, "grad_out"))
        if self.padding_idx is not None:
            gradient[bags.ids == self.padding_idx] = 0
        return torch.from_numpy(gradient)


def _alone(saved: dict[str, Any]) -> EmbeddingTable:
    return EmbeddingTable._made(saved)  # under this name pickles know it


def table_of(parameter: Any) -> ParameterTable | None:
    """Return the table of a parameter, or None if it is no table."""
    table: ParameterTable | None = TABLES.get(parameter)
    if table is not None:
        table.relocate(parameter)
    return table


@contextlib.contextmanager
def released(parameter: Any) -> Iterator[None]:
    """Hold a parameter without weak references while a module converts it: torch.utils.swap_tensors refuses them."""
    if not torch.__future__.get_swap_module_params_on_conversion() or (table := TABLES.pop(parameter, None)) is None:
        yield
        return
    table._contents.parameter = lambda: parameter
    try:
        yield
    finally:  # it holds another tensor now, of another class, whose hooks must be set again
        TABLES[parameter], table._contents.parameter = table, ref(parameter)
        if (hooks := parameter._post_accumulate_grad_hooks) is not None:
            parameter._post_accumulate_grad_hooks = hooks
        if table._contents.catches_up:
            watch(parameter)


def trainable(parameter: Any, position: int | None = None) -> ParameterTable:
    """Return the table of a parameter; refuse a parameter that no Optimizer trains."""
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
