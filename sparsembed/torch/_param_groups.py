"""Hyperparameters of a rule, as the groups of a torch optimizer hold them."""

import difflib
import functools
import inspect
from dataclasses import fields, replace
from typing import Any

import torch

from .. import rules
from ..rules import Rule
from ..rules.adagrad import Adagrad
from ..rules.adam import AdamW
from ..rules.rmsprop import RMSprop
from ..rules.sgd import SGD

# Keys of a group that are no hyperparameters: keys of torch and of its schedulers.
ADDED = {"params", "param_names", "name", "initial_lr", "max_lr", "min_lr", "swa_lr", "base_momentum", "max_momentum"}
# Options of torch's optimizers, and the values that turn an option off or only choose an implementation.
_IDLE: dict[str, tuple[Any, ...]] = {
    "maximize": (False,),
    "amsgrad": (False,),
    "centered": (False,),
    "nesterov": (False,),
    "momentum": (0,),
    "dampening": (0,),
    "weight_decay": (0,),
    "capturable": (False,),
    "differentiable": (False,),
    "foreach": (None, False),
    "fused": (None, False),
}
# Other names of hyperparameters, in other libraries.
_SPELLED = {"learning_rate", "step_size", "beta1", "beta2", "epsilon", "decay", "l2", "wd", "clip_norm", "grad_clip"}


def names(rule: Rule) -> set[str]:
    """Names of the hyperparameters of a rule."""
    return {field.name for field in fields(rule)}  # type: ignore[arg-type]


def hidden(rule: Rule) -> set[str]:
    """Names that groups leave out: neither torch nor former versions have the decay of touched rows.

    Where it is on, SGD has no other decay, and torch's SGD, which would leave it out, misses the key.
    """
    if getattr(rule, "touched_weight_decay", 0):
        return {"weight_decay"} if isinstance(rule, SGD) else set()
    return {"touched_weight_decay"}


def shown(rule: Rule) -> dict[str, Any]:
    """Return hyperparameters as a group shows them: a learning rate that is a function by its first value."""
    values = {name: getattr(rule, name) for name in names(rule) - hidden(rule)}
    return values | {"lr": rule.rate(1)} if callable(values["lr"]) else values


def plain(value: Any) -> Any:
    """Return a number for a tensor, which schedulers may set, and a tuple for a list, which files may hold."""
    value = value.item() if isinstance(value, torch.Tensor) else value
    return tuple(value) if isinstance(value, list) else value


def foreign(rule: Rule, group: dict[str, Any]) -> set[str]:
    """Return the keys of a group that have no effect; refuse keys that ask for what the rule does not have.

    A key that is no hyperparameter of any optimizer is the user's own, such as the ``lr_scale`` of a schedule by
    layers: it stays in the group, as in torch.
    """
    others = group.keys() - names(rule) - ADDED
    idle = {name for name in others if _is_idle(name, rule, group)}
    if wrong := sorted(str(name) for name in others - idle if _asks(name)):
        raise TypeError(
            f"{wrong} of a group are no hyperparameters of {rule}, which has {sorted(names(rule))}; leave them out"
        )
    return idle


def _asks(name: Any) -> bool:
    """Whether a key is, or is nearly, the name of a hyperparameter of any optimizer."""
    return bool(difflib.get_close_matches(str(name).lower(), _hyperparameters(), n=1, cutoff=0.85))


@functools.cache
def _hyperparameters() -> list[str]:
    classes = [each for each in vars(torch.optim).values() if inspect.isclass(each)]
    torchs = [each for each in classes if issubclass(each, torch.optim.Optimizer)]
    asked = {name for each in torchs for name in inspect.signature(each).parameters}
    ours = [each for each in vars(rules).values() if inspect.isclass(each) and issubclass(each, Rule)]
    own = {name for each in ours for name in inspect.signature(each).parameters}
    return sorted((asked | own | _SPELLED | _IDLE.keys()) - {"params", "defaults", "args", "kwargs"})


def saved(rule: Rule, group: dict[str, Any]) -> dict[str, Any]:
    """Return a group with all keys that torch's optimizer of the same name needs.

    Without "weight_decay", which makes a step of torch raise, where torch would compute something else: with a sum that
    lacks its initial value, and without the decay of touched rows.
    """
    others = getattr(rule, "initial_accumulator_value", 0) or getattr(rule, "touched_weight_decay", 0)
    idle = {"weight_decay": 0} if not others and isinstance(rule, Adagrad | RMSprop) else {}
    own = {name: getattr(rule, name) for name in names(rule) - hidden(rule) - group.keys()}
    kept = {name: value for name, value in group.items() if name not in hidden(rule)}
    return {**kept, **own, **{name: value for name, value in idle.items() if name not in group}}


def completed(rule: Rule, group: dict[str, Any]) -> dict[str, Any]:
    """Return a group with the hyperparameters that `hidden` leaves out."""
    lacking = names(rule) - group.keys()
    touched = plain(group.get("touched_weight_decay", 0))
    filled = lacking & ({"touched_weight_decay", "weight_decay"} if touched else {"touched_weight_decay"})
    return {**group, **dict.fromkeys(filled, 0.0)}


def _is_idle(name: Any, rule: Rule, group: dict[str, Any]) -> bool:
    value = plain(group[name])
    if name == "decoupled_weight_decay":
        return value is isinstance(rule, AdamW) or not plain(group.get("weight_decay", 0))
    return name in _IDLE and (value is None or isinstance(value, bool | int | float)) and value in _IDLE[name]


def changed(rule: Rule, group: dict[str, Any]) -> Rule:
    """Return a rule with the hyperparameters of a group."""
    values = {name: plain(group[name]) for name in names(rule) & group.keys()}
    return replace(rule, **values)  # type: ignore[type-var]


def loaded(rule: Rule, group: dict[str, Any]) -> Rule:
    """Return a rule with the hyperparameters of a saved and `completed` group, which must have all of them."""
    if missing := sorted(names(rule) - group.keys()):
        raise KeyError(f"param_groups of the state lack {missing} of {rule}")
    others = foreign(rule, group)
    lr = rule.lr if callable(rule.lr) else group["lr"]  # type: ignore[attr-defined]
    result = changed(rule, {**group, "lr": lr})
    if others and isinstance(result, Adagrad) and result.initial_accumulator_value:
        raise ValueError(
            "the state of torch's Adagrad has its initial_accumulator_value in 'sum', where that of se.Adagrad leaves "
            "it out; subtract it, and take the keys that se.Adagrad does not have out of param_groups: "
            f"{sorted(others)}"
        )
    return result
