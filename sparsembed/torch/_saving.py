"""SavedOptimizer: how the state that lies in tables is shown, saved, copied and restored as a torch optimizer's."""

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any
from weakref import ref

import torch

from ..rules import Rule
from . import _param_groups as _groups
from ._table import ParameterTable, trainable

Work = list[tuple[ParameterTable, Rule, dict[str, Any]]]


class TableState(MutableMapping[str, Any]):
    """The entry of one table in `Optimizer.state`: its step, and its slots without a copy."""

    def __init__(self, table: ParameterTable, rule: Rule) -> None:
        self._table, self._rule = table, rule

    def __getitem__(self, name: str) -> Any:
        return self._table.step if name == "step" else torch.from_numpy(self._table.state[name])

    def __setitem__(self, name: str, value: Any) -> None:
        table = self._table
        state = table.checked(self._rule, {**table.saved(), name: value})  # refuses a name that is no slot
        table.train(self._rule, state, table.owner)

    def __delitem__(self, name: str) -> None:
        raise TypeError(f"{name!r} cannot be taken out of the state of a table; start anew with optimizer.state = {{}}")

    def __iter__(self) -> Iterator[str]:
        return iter(["step", *self._table.slot_names])

    def __len__(self) -> int:
        return 1 + len(self._table.slot_names)

    def __repr__(self) -> str:
        return repr(dict(self))


class States(Mapping[Any, TableState]):
    """`Optimizer.state`: the current state of each table, by parameter.

    An empty state would make torch's helpers take a step in order to fill it.
    """

    def __init__(self, optimizer: "SavedOptimizer") -> None:
        self._optimizer = optimizer

    def _rule_of(self, parameter: Any) -> Rule | None:
        optimizer = self._optimizer
        for group, rule in zip(optimizer.param_groups, optimizer._rules, strict=True):
            if any(each is parameter for each in group["params"]):
                return rule
        return None

    def __getitem__(self, parameter: Any) -> TableState:
        rule = self._rule_of(parameter)
        if rule is None:
            raise KeyError(parameter)
        return TableState(self._optimizer._table(parameter, rule), rule)

    def __contains__(self, parameter: Any) -> bool:
        return self._rule_of(parameter) is not None

    def __iter__(self) -> Iterator[Any]:
        return (parameter for group in self._optimizer.param_groups for parameter in group["params"])

    def __len__(self) -> int:
        return sum(len(group["params"]) for group in self._optimizer.param_groups)

    def __repr__(self) -> str:
        return repr(dict(self))


class SavedOptimizer(torch.optim.Optimizer):
    """Base of `Optimizer`: `state` shows the state of the tables, and torch saves and loads copies of it."""

    _rule: Rule
    _rules: list[Rule]
    _shown: list[dict[str, Any]]
    _copies: dict[Any, dict[str, Any]] | None = None  # the copies, while torch saves them
    _pending: dict[Any, dict[str, Any]]  # of a copied optimizer: the state of tables until its first step

    @property
    def state(self) -> Any:
        """The state of each table, by parameter: "step", and slots in the memory of the table."""
        return States(self) if self._copies is None else self._copies

    @state.setter
    def state(self, state: Mapping[Any, Any]) -> None:
        """Start with this state, or anew if it is empty; torch's constructor does so before there are groups."""
        if "param_groups" in self.__dict__:
            self._attach(self._checked(self.param_groups, self._rules, state))
            self._pending = {}

    def _table(self, parameter: Any, rule: Rule) -> ParameterTable:
        raise NotImplementedError

    def _attach(self, work: Work) -> None:
        for table, rule, state in work:
            table.train(rule, state, ref(self))

    @staticmethod
    def _checked(groups: list[dict[str, Any]], rules: list[Rule], found: Mapping[Any, Any]) -> Work:
        """Return what to attach; refuse a state that does not fit."""
        work: Work = []
        for group, rule in zip(groups, rules, strict=True):
            tables = [(trainable(each), found.get(each, {})) for each in group["params"]]
            work += [(table, rule, table.checked(rule, state)) for table, state in tables]
        known = {id(parameter) for group in groups for parameter in group["params"]}
        if left := [key for key in found if id(key) not in known]:
            raise KeyError(f"the state has entries {left}, which are no parameters of its groups")
        return work

    def _with_state(self, function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Call a function while `state` is a dict of copies, for torch to save."""
        found: dict[Any, dict[str, Any]] = {}
        for group, rule in zip(self.param_groups, self._rules, strict=True):
            for parameter in group["params"]:
                saved = self._table(parameter, rule).saved()
                found[parameter] = {k: v if k == "step" else torch.from_numpy(v) for k, v in saved.items()}
        self._copies = found
        try:
            return function()
        finally:
            self._copies = None

    def state_dict(self) -> dict[str, Any]:
        """Return copies of the step and slots of each table, and the groups' hyperparameters."""
        result = self._with_state(super().state_dict)
        for entry in result["state"].values():
            if entry["step"] == 0 and "momentum_buffer" in entry:
                entry.clear()  # torch would take it for the buffer of a step
        pairs = zip(self._rules, result["param_groups"], strict=True)
        return {**result, "param_groups": [_groups.saved(rule, group) for rule, group in pairs]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Parameters
        ----------
        state_dict : dict
            Of an optimizer with the same groups and rules, or of the optimizer of torch that a rule is named after.
            Its hyperparameters, the learning rate among them, are those of the groups from now on; a learning rate that
            is a function of the step is not saved, and stays.  The momentum of torch's SGD comes without a step, so it
            is refused where the learning rate is such a function.
            A table that has no entry in ``state_dict["state"]``, or an empty one, starts anew, as torch's optimizers
            do: that is the state before the first step.  Numbers of parameters may be strings, as JSON and
            `torch.distributed.checkpoint` make of them.

        Raises
        ------
        KeyError, TypeError, ValueError
            For what does not fit; nothing changes then, of any table.
        """
        if isinstance(state := state_dict.get("state"), Mapping):
            numbers = {str(k): k for group in state_dict["param_groups"] for k in group.get("params", [])}
            state_dict = {**state_dict, "state": {numbers.get(k, k): v for k, v in state.items()}}
        super().load_state_dict(state_dict)  # compares the groups, and calls `__setstate__`

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "_rule" in state:  # of a copy, whose tables are met at its first step
            super().__setstate__({name: value for name, value in state.items() if name != "state"})
            self._pending = state["state"]
            return
        groups = [
            _groups.completed(rule, group) for rule, group in zip(self._rules, state["param_groups"], strict=True)
        ]
        rules = [_groups.loaded(rule, group) for group, rule in zip(groups, self._rules, strict=True)]
        work = self._checked(groups, rules, state["state"])
        for group, rule in zip(groups, rules, strict=True):
            for name in _groups.foreign(rule, group) | (_groups.hidden(rule) & group.keys()):
                del group[name]
        super().__setstate__({"param_groups": groups})
        self._rules = rules
        found = [(group, _groups.names(rule) & group.keys()) for group, rule in zip(groups, rules, strict=True)]
        self._shown = [{name: _groups.plain(group[name]) for name in names} for group, names in found]
        self._attach(work)
        self._pending = {}

    def __getstate__(self) -> dict[str, Any]:
        own = {"_rule": self._rule, "_rules": self._rules, "_shown": self._shown}
        its = super().__getstate__
        return self._with_state(lambda: {**its(), **own})
