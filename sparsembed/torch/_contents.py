"""ParameterContents: the contents of a table in the memory of a torch parameter."""

from collections.abc import Callable, Mapping
from typing import Any
from weakref import ref

import torch

from .. import _check as check
from .._contents import Contents
from .._cpu.inputs import in_place, matrix, table_of
from .._engine import CPU
from .._saved import weights_of
from .._typing import Array
from ..rules import Rule
from . import _check
from ._weight import watch


def memory_of(parameter: Any) -> Array:
    """Return the memory of a parameter; refuse memory that cannot hold a table."""
    _check.place(parameter.device, "weight")
    _check.dtype(parameter.dtype, "weight.dtype")
    with torch._C.DisableTorchFunctionSubclass():  # for a table that is on its way here
        array = matrix(parameter)
    check.count(len(array), "num_embeddings")
    in_place(array, "weight", "a contiguous copy")
    return array


def place_of(parameter: Any) -> dict[str, Any]:
    """Return whose memory a table lies in, and where."""
    return {"parameter": ref(parameter), "address": int(parameter.data_ptr())}


class ParameterContents(Contents):
    """Contents in a parameter's memory, also after it has moved; padding rows keep their values, as in torch."""

    parameter: Callable[[], Any]  # a weak reference
    address: int
    owner: Any  # a weak reference to the Optimizer that steps
    written: bool  # whether rows may have been written outside the engine, so that norms may exceed `max_norm`
    _table: Any

    def commit(self, parts: dict[str, Any]) -> None:
        """Put parts in place; `table` and `given` are properties here."""
        names = {"table": "_table", "given": "_given"}
        super().commit({names.get(name, name): value for name, value in parts.items()})

    def _exchange(self, rule: Rule) -> None:
        super()._exchange(rule)
        if self.catches_up and (parameter := self.parameter()) is not None:
            watch(parameter)

    @property
    def table(self) -> Any:
        """The parameter's memory, looked up each time: torch frees the old memory when it moves a storage in place."""
        parameter = self.parameter()
        if parameter is not None and parameter.data_ptr() != self.address:
            self.relocate(parameter)
        return self._table

    @property
    def given(self) -> Array:
        """The weight as an array."""
        array: Array = self.table.array
        return array

    def restart(self, rule: Rule | None, step: int, state: Mapping[str, Any] | None, **others: Any) -> None:
        """Start a rule at a step, with a state or afresh, and set the attributes `others` in the same assignment."""
        self._hold(self.table.array, rule, step, state, others)

    def _hold(
        self, array: Array, rule: Rule | None, step: int, state: Mapping[str, Any] | None, others: dict[str, Any]
    ) -> None:
        parts = CPU.hold(None, array, rule, self.options, step, constrain=False)
        parts["written"] = parts["limit"] is not None
        names = ((), ()) if rule is None else (rule.slots, rule.row_slots)
        for found, part in zip((parts["state"], parts["row_state"]), names, strict=True):
            for k, name in enumerate(part if state else ()):
                found[:, k] = state[name]  # type: ignore[index]
        self.commit(parts | others)

    def relocate(self, parameter: Any) -> None:
        """Use the parameter's new memory if it has moved, and convert the state to the new dtype."""
        if parameter.data_ptr() == self.address:
            return
        array = memory_of(parameter)
        with self.lock:
            if self.some_missed:
                raise RuntimeError(
                    "weight got other memory while some of its rows had steps to catch up with; read module.weight, "
                    "which brings them up to date, before you replace or share its memory"
                )
            held, place = self._table.array, place_of(parameter)
            if array.shape != held.shape and self.rule is not None:
                raise ValueError(f"weight must keep its shape {held.shape}, got {array.shape}; make a new module")
            if (array.shape, array.dtype) == (held.shape, held.dtype):
                self.commit({"table": table_of(array), "written": self.limit is not None, **place})
            else:
                self._hold(array, self.rule, self.step, self.engine.columns(self), place)

    def restore(self, state_dict: Mapping[str, Any], strict: bool = True) -> None:
        """Restore rows as they are."""
        with self.lock:
            given = state_dict if strict else weights_of(state_dict, self.columns, self.table.dtype)
            CPU.restore(self, given, constrain=False)
            self.written = self.limit is not None
