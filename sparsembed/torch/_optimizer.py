"""Optimizer: a torch.optim.Optimizer that takes sparsembed's steps."""

import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from ..gradient import RowGradient
from ..rules import Rule
from . import _param_groups as _groups
from ._compile import untraced
from ._saving import SavedOptimizer
from ._table import ParameterTable, trainable


class Optimizer(SavedOptimizer):
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

    ``state[parameter]`` shows the step and the slots of a table, in its memory; ``state = {}`` starts all anew.

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

    _waiting: list[Any] | None = None  # parts that the constructor attaches after the last check

    def __init__(self, params: Any, rule: Rule) -> None:
        if not isinstance(rule, Rule):
            raise TypeError(f"rule must be a sparsembed rule such as se.SparseAdam(lr=1e-3), got {rule!r}")
        self._rule = rule
        self._rules: list[Rule] = []  # one for each group
        self._shown: list[dict[str, Any]] = []  # hyperparameters of each group when its rule was made
        self._pending = {}
        waiting: list[Any] = []
        self._waiting = waiting
        super().__init__(params, _groups.shown(rule))
        del self._waiting
        self._attach(waiting)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, whose tables start fresh.

        Parameters
        ----------
        param_group : dict
            As for the class.

        Raises
        ------
        TypeError, ValueError
            As for the class; nothing changes then.

        Examples
        --------
        >>> import sparsembed as se, sparsembed.torch
        >>> first, second = (sparsembed.torch.Embedding(10, 4) for _ in range(2))
        >>> optimizer = sparsembed.torch.Optimizer([first.weight], se.SGD(lr=0.1))
        >>> optimizer.add_param_group({"params": [second.weight], "lr": 0.01})
        >>> [group["lr"] for group in optimizer.param_groups]
        [0.1, 0.01]
        """
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, got {type(param_group).__name__}")
        group = dict(param_group)
        rule = group.pop("rule", self._rule)
        if not isinstance(rule, Rule):
            raise TypeError(f"the rule of a group must be a sparsembed rule, got {rule!r}")
        for name in _groups.foreign(rule, group):
            del group[name]
        rule = _groups.changed(rule, group)
        group |= _groups.shown(rule)
        super().add_param_group(group)
        try:
            tables = [trainable(each, i) for i, each in enumerate(group["params"])]
            work = [(table, rule, table.checked(rule, {})) for table in tables]
        except BaseException:
            self.param_groups.pop()
            raise
        for name in self.defaults.keys() - _groups.names(rule) - _groups.ADDED:
            group.pop(name, None)
        self._rules.append(rule)
        self._shown.append(_groups.shown(rule))
        if self._waiting is None:
            self._attach(work)
        else:
            self._waiting += work

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
            If a gradient is dense, as that of a weight that another layer uses, too; or if the weight of a module was
            replaced since.
        TypeError, ValueError
            If `param_groups` were given what the rule does not have or take.  No table has stepped then.

        Examples
        --------
        >>> import torch, sparsembed as se, sparsembed.torch
        >>> embedding = sparsembed.torch.Embedding(10, 4)
        >>> optimizer = sparsembed.torch.Optimizer([embedding.weight], se.SGD(lr=0.1))
        >>> embedding(torch.tensor([3, 5])).sum().backward()
        >>> optimizer.step()
        """
        return self._step(closure)

    @untraced
    @torch.no_grad()
    def _step(self, closure: Callable[[], Any] | None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad(), torch._C._EnableTorchFunction():  # it is not ours
                loss = closure()
        work = []  # nothing is stepped before all has been checked
        for index, group in enumerate(self.param_groups):
            rule = self._refreshed(index, group)
            for parameter in group["params"]:
                table = self._table(parameter, rule)
                if table.is_left(parameter):
                    raise RuntimeError(
                        f"a weight in param_groups[{index}] is no longer that of its module, which got another by "
                        "load_state_dict(assign=True) or module.weight = ...; make a new Optimizer after that"
                    )
                if (grad := parameter.grad) is None:
                    continue
                if not grad.is_sparse:
                    raise RuntimeError(
                        "a table got a dense gradient: another layer uses its weight, too; give this parameter to a "
                        "torch optimizer, or do not share it"
                    )
                table.ready(rule)
                work.append((parameter, table, rule, RowGradient.from_torch(grad)))
        for parameter, table, rule, gradient in work:
            if table.optimizer != rule:
                table.optimizer = rule
            table.settle(parameter)
            table.apply(gradient)
            table.wrote(parameter)
        for group, rule, shown in zip(self.param_groups, self._rules, self._shown, strict=True):
            if callable(rule.lr):  # type: ignore[attr-defined]
                steps = [self._table(parameter, rule).step for parameter in group["params"]]
                group["lr"] = shown["lr"] = rule.rate(max(steps, default=0) + 1)
        return loss

    def _refreshed(self, index: int, group: dict[str, Any]) -> Rule:
        """Return the rule of a group with what was changed in it."""
        shown, rule = self._shown[index], self._rules[index]
        _groups.foreign(rule, group)
        values = {name: _groups.plain(group[name]) for name in shown.keys() | (_groups.names(rule) & group.keys())}
        if values == shown:
            return rule
        changed = {name: value for name, value in values.items() if value != shown.get(name, getattr(rule, name))}
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
        table = trainable(parameter)
        if table.owner() is not self:
            if parameter not in self._pending:
                raise RuntimeError(
                    "another Optimizer was made for this table since, and started its state anew; use that"
                )
            table.train(rule, table.checked(rule, self._pending[parameter]), weakref.ref(self))  # a copy's first step
            del self._pending[parameter]
        return table

    def flush(self) -> None:
        """Bring every row up to date, for readers of the memory that bypass functions of torch."""
        for group, rule in zip(self.param_groups, self._rules, strict=True):
            for parameter in group["params"]:
                self._table(parameter, rule).flush()
