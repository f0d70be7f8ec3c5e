"""Optimizer: a torch.optim.Optimizer that takes sparsembed's steps."""

import weakref
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import torch

from ..gradient import RowGradient
from ..rules import Rule
from ._table import ParameterTable, stepped, table_of

# Keys of a group that are no hyperparameters: torch's own, and what its schedulers note.
_ADDED = {"params", "param_names", "name", "initial_lr", "max_lr", "min_lr", "swa_lr", "base_momentum", "max_momentum"}


class Optimizer(torch.optim.Optimizer):
    """Train tables by a rule: one engine step per table and `step`.

    Parameters
    ----------
    params : iterable of parameters, named parameters, or groups
        Weights of `Embedding` and `EmbeddingBag`, not fused: see `table_parameters`.  A group is a dict with "params"
        and, of its own, hyperparameters or a "rule".
    rule : Rule
        Such as ``se.SparseAdam(lr=1e-3)``.

    Raises
    ------
    TypeError, ValueError
        For parameters that are not such weights, and keys of a group that are no hyperparameters of its rule.

    Notes
    -----
    Groups of `param_groups` hold the rule's hyperparameters; a change (of a scheduler, say) counts from the next step.
    With a rule whose `lr` is a function of the step, ``group["lr"]`` shows its value and must not be changed.

    A table without a gradient takes no step, and its step is not counted, as for all optimizers of torch.  For
    `se.Adam`, `se.AdamW` and momentum that is what torch's dense optimizers do, too: they leave a parameter whose
    gradient is None alone.  Making another `Optimizer` for a table starts its state anew.

    Examples
    --------
    >>> import torch, sparsembed as se, sparsembed.torch
    >>> bag = sparsembed.torch.EmbeddingBag(10, 4)
    >>> optimizer = sparsembed.torch.Optimizer(bag.parameters(), se.Adagrad(lr=0.1))
    >>> scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1)
    >>> bag(torch.tensor([[1, 2]])).sum().backward()
    >>> optimizer.step(), scheduler.step()
    (None, None)
    >>> round(optimizer.param_groups[0]["lr"], 6), bag.table.step
    (0.01, 1)
    >>> more = sparsembed.torch.Embedding(5, 4)
    >>> optimizer.add_param_group({"params": more.parameters(), "lr": 0.5})
    >>> optimizer.flush()  # nothing to do for Adagrad
    >>> saved = optimizer.state_dict()
    >>> optimizer.load_state_dict(saved)
    >>> [sorted(each) for each in saved["state"].values()], optimizer.param_groups[1]["lr"]
    ([['step', 'sum'], ['step', 'sum']], 0.5)
    """

    def __init__(self, params: Any, rule: Rule) -> None:
        if not isinstance(rule, Rule):
            raise TypeError(f"rule must be a sparsembed rule such as se.SparseAdam(lr=1e-3), got {rule!r}")
        self._rule = rule
        self._rules: list[Rule] = []  # one for each group
        self._shown: list[dict[str, Any]] = []  # hyperparameters of each group when its rule was made
        super().__init__(params, _shown(rule))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, whose tables start fresh.

        Parameters
        ----------
        param_group : dict
            As for the class.

        Raises
        ------
        TypeError, ValueError
            As of the class; no group is added then.
        """
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, got {type(param_group).__name__}")
        group = dict(param_group)
        rule = group.pop("rule", self._rule)
        if not isinstance(rule, Rule):
            raise TypeError(f"the rule of a group must be a sparsembed rule, got {rule!r}")
        rule = _changed(rule, group)
        group |= _shown(rule)
        super().add_param_group(group)
        try:
            tables = [_trainable(each, i) for i, each in enumerate(group["params"])]
            for parameter, table in zip(group["params"], tables, strict=True):
                table.attach(rule, self.state.pop(parameter, {}), weakref.ref(self))
        except BaseException:
            self.param_groups.pop()
            raise
        for name in self.defaults.keys() - _names(rule) - _ADDED:
            group.pop(name, None)
        self._rules.append(rule)
        self._shown.append(_shown(rule))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step on every table that has a gradient.

        Parameters
        ----------
        closure : callable, optional
            Evaluates the model again and returns the loss.

        Returns
        -------
        What `closure` returned, or None.

        Raises
        ------
        RuntimeError
            If a gradient is dense, as that of a weight that another layer uses, too.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        work = []  # nothing is stepped before all has been checked
        for index, group in enumerate(self.param_groups):
            rule = self._refreshed(index, group)
            for parameter in group["params"]:
                if (grad := parameter.grad) is None:
                    continue
                if not grad.is_sparse:
                    raise RuntimeError(
                        "a table got a dense gradient: another layer uses its weight, too; give this parameter to a "
                        "torch optimizer, or do not share it"
                    )
                work.append((parameter, self._table(parameter, rule), rule, RowGradient.from_torch(grad)))
        for parameter, table, rule, gradient in work:
            if table.optimizer != rule:
                table.optimizer = rule
            table.apply(gradient)
            stepped(parameter)
        for group, rule, shown in zip(self.param_groups, self._rules, self._shown, strict=True):
            if callable(rule.lr):  # type: ignore[attr-defined]
                steps = [self._table(parameter, rule).step for parameter in group["params"]]
                group["lr"] = shown["lr"] = rule.rate(max(steps, default=0) + 1)
        return loss

    def _refreshed(self, index: int, group: dict[str, Any]) -> Rule:
        """Return the rule of a group with what was changed in it."""
        shown, rule = self._shown[index], self._rules[index]
        values = {name: _plain(group[name]) for name in shown}
        if values == shown:
            return rule
        changed = {name: value for name, value in values.items() if value != shown[name]}
        if "lr" in changed and callable(rule.lr):  # type: ignore[attr-defined]
            raise ValueError(
                f"the learning rate of {rule} is a function of the step, but param_groups[{index}]['lr'] was set to "
                f"{group['lr']!r}; schedule it in one place"
            )
        self._rules[index] = replace(rule, **changed)  # type: ignore[type-var]
        self._shown[index] = values
        return self._rules[index]

    def _table(self, parameter: Any, rule: Rule) -> ParameterTable:
        """Return the table of a parameter, which must be this optimizer's."""
        table = _trainable(parameter)
        if table.owner() is not self:
            if parameter not in self.state:
                raise RuntimeError(
                    "another Optimizer was made for this table since, and started its state anew; use that"
                )
            table.attach(rule, self.state.pop(parameter), weakref.ref(self))  # a copy's first step
        return table

    def flush(self) -> None:
        """Bring every row up to date, for whoever reads parameters other than as `module.weight`."""
        for group, rule in zip(self.param_groups, self._rules, strict=True):
            for parameter in group["params"]:
                self._table(parameter, rule).flush()

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
            Of an optimizer with the same groups and rules.

        Raises
        ------
        KeyError, TypeError, ValueError
            For what does not fit; nothing changes then.
        """
        for group, rule, saved in zip(self.param_groups, self._rules, state_dict["param_groups"], strict=False):
            if missing := sorted(_names(rule) - saved.keys()):
                raise KeyError(f"param_groups of the state lack {missing} of {rule}")
            lr = rule.lr if callable(rule.lr) else saved["lr"]  # type: ignore[attr-defined]
            loaded = _changed(rule, {**saved, "lr": lr})
            for parameter, number in zip(group["params"], saved["params"], strict=False):
                _trainable(parameter).refuse(loaded, state_dict["state"].get(number, {}))
        super().load_state_dict(state_dict)  # which refuses numbers of groups and parameters that differ
        for index, group in enumerate(self.param_groups):
            if callable(self._rules[index].lr):  # type: ignore[attr-defined]
                self._shown[index]["lr"] = group["lr"]
            rule = self._refreshed(index, group)
            for parameter in group["params"]:
                _trainable(parameter).attach(rule, self.state.pop(parameter, {}), weakref.ref(self))

    def __getstate__(self) -> dict[str, Any]:
        own = {"_rule": self._rule, "_rules": self._rules, "_shown": self._shown}
        return self._with_state(lambda: {**super(Optimizer, self).__getstate__(), "state": self.state.copy(), **own})


def _names(rule: Rule) -> set[str]:
    return {field.name for field in fields(rule)}  # type: ignore[arg-type]


def _changed(rule: Rule, group: dict[str, Any]) -> Rule:
    """Return a rule with the hyperparameters of a group, and refuse what it does not have."""
    own = _names(rule)
    if unknown := sorted(group.keys() - own - _ADDED):
        raise TypeError(f"{unknown} are no hyperparameters of {rule}, which has {sorted(own)}")
    return replace(rule, **{name: _plain(group[name]) for name in own & group.keys()})  # type: ignore[type-var]


def _shown(rule: Rule) -> dict[str, Any]:
    """Hyperparameters as a group shows them."""
    values = {name: getattr(rule, name) for name in _names(rule)}
    return values | {"lr": rule.rate(1)} if callable(values["lr"]) else values


def _plain(value: Any) -> Any:
    """Return a number for a tensor, as schedulers may leave, and a tuple for a list, as files do."""
    value = value.item() if isinstance(value, torch.Tensor) else value
    return tuple(value) if isinstance(value, list) else value


def _trainable(parameter: Any, position: int | None = None) -> ParameterTable:
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
