"""SavedOptimizer: how the state that lies in tables is saved, copied and restored as that of a torch optimizer."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

from ..rules import Rule
from . import _groups
from ._table import ParameterTable, trainable


class SavedOptimizer(torch.optim.Optimizer):
    """Base of `Optimizer`: torch sees the state of tables in `state` while it saves or loads, and only then."""

    _rule: Rule
    _rules: list[Rule]
    _shown: list[dict[str, Any]]

    def _table(self, parameter: Any, rule: Rule) -> ParameterTable:
        raise NotImplementedError

    def _attach(self, work: list[tuple[ParameterTable, Rule, dict[str, Any]]]) -> None:
        raise NotImplementedError

    def _with_state(self, function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Call a function while `state` holds copies of the tables' state, for torch to find."""
        found: dict[Any, dict[str, Any]] = {}
        for group, rule in zip(self.param_groups, self._rules, strict=True):
            for parameter in group["params"]:
                saved = self._table(parameter, rule).saved()  # which empties `state`, if this is a copy
                found[parameter] = {k: v if k == "step" else torch.from_numpy(v) for k, v in saved.items()}
        self.state.update(found)
        try:
            return function()
        finally:
            self.state.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return copies of the step and slots of each table, and the groups' hyperparameters."""
        return self._with_state(super().state_dict)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Parameters
        ----------
        state_dict : dict
            Of an optimizer with the same groups and rules, or of the optimizer of torch that a rule is named after.
            A table that has no entry in ``state_dict["state"]``, or an empty one, starts anew, as torch's optimizers
            do: that is the state before the first step.

        Raises
        ------
        KeyError, TypeError, ValueError
            For what does not fit; nothing changes then, of any table.
        """
        super().load_state_dict(state_dict)  # which compares the groups, and comes back to `__setstate__`

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "_rule" in state:  # of a copy, whose tables are met at its first step
            super().__setstate__(state)
            return
        groups, found = state["param_groups"], state["state"]
        rules: list[Rule] = []
        work: list[tuple[ParameterTable, Rule, dict[str, Any]]] = []
        for group, rule in zip(groups, self._rules, strict=True):
            rules.append(_groups.loaded(rule, group))
            for parameter in group["params"]:
                table = trainable(parameter)
                work.append((table, rules[-1], table.checked(rules[-1], found.get(parameter, {}))))
        if left := [key for key in found if not isinstance(key, torch.Tensor)]:
            raise KeyError(f"the state has entries {left}, which are no parameters of its groups")
        for group, rule in zip(groups, rules, strict=True):
            for name in _groups.foreign(rule, group):
                del group[name]
        super().__setstate__({"param_groups": groups, "state": defaultdict(dict)})
        self._rules = rules
        pairs = zip(groups, rules, strict=True)
        self._shown = [{name: _groups.plain(group[name]) for name in _groups.names(rule)} for group, rule in pairs]
        self._attach(work)

    def __getstate__(self) -> dict[str, Any]:
        own = {"_rule": self._rule, "_rules": self._rules, "_shown": self._shown}
        its = super().__getstate__
        return self._with_state(lambda: {**its(), "state": self.state.copy(), **own})
