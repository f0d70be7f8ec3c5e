"""Optimizers as JSON: the name of a class of this package, and hyperparameters as numbers."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from .. import rules
from ..rules import Rule

OURS: dict[str, type[Rule]] = {name: getattr(rules, name) for name in rules.__all__ if name != "Rule"}


def described(rule: Rule | None) -> dict[str, Any] | None:
    """Return an optimizer as JSON; what JSON cannot hold is left out, and must be given again by whoever loads it."""
    if rule is None:
        return None
    kind, ours = type(rule), OURS.get(rule._name)
    state = {"slots": list(kind.slots), "row_slots": list(kind.row_slots)}
    if ours is None or kind.__module__ != ours.__module__:  # forms of an optimizer stand in its module
        return {"class": f"{kind.__module__}.{kind.__qualname__}", "hyperparameters": None, **state}
    values = {field.name: getattr(rule, field.name) for field in fields(rule)}  # type: ignore[arg-type]
    functions = [name for name, value in values.items() if callable(value)]
    numbers = {name: value for name, value in values.items() if name not in functions}
    return {"class": rule._name, "hyperparameters": numbers, "functions": functions, **state}


def slots_of(saved: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the slots and row slots of a saved optimizer."""
    if saved is None:
        return (), ()
    if not isinstance(saved, Mapping) or not isinstance(saved.get("class"), str):
        raise ValueError(f"its optimizer has no class: {str(saved)[:200]}")
    found = []
    for kind in ("slots", "row_slots"):
        names = saved.get(kind)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"its optimizer has no names of {kind}: {str(saved)[:200]}")
        found.append(tuple(names))
    if len({*found[0], *found[1]}) < len(found[0]) + len(found[1]):
        raise ValueError(f"its optimizer has two slots of one name: {str(saved)[:200]}")
    return found[0], found[1]


def chosen(saved: Any, given: Rule | None) -> Rule | None:
    """Return the given optimizer, which must have the slots of the saved one, or the saved one; nothing is imported."""
    state = slots_of(saved)
    if given is None:
        return None if saved is None else _made(saved, state)
    mine = (given.slots, given.row_slots)
    if saved is not None and mine != state:
        raise ValueError(
            f"optimizer must have the state of the saved {saved['class']}, slots {state[0]} and row slots {state[1]}, "
            f"got {given} with {mine[0]} and {mine[1]}"
        )
    return given


def _made(saved: Mapping[str, Any], state: Any) -> Rule:
    name, values, functions = saved["class"], saved.get("hyperparameters"), saved.get("functions")
    kind = OURS.get(name)
    if kind is None:
        raise ValueError(
            f"it was saved with an optimizer of class {name}, which is not one of this package; pass optimizer="
        )
    if functions:
        raise ValueError(f"it was saved with {name} whose {functions} was a function of the step; pass optimizer=")
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    if not isinstance(values, Mapping) or not values.keys() <= names:
        raise ValueError(f"its {name} has hyperparameters {str(values)[:200]}, and those of {name} are {sorted(names)}")
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    rule = kind(**given)
    forms = [each for each in kind.__subclasses__() if each._name == name and (each.slots, each.row_slots) == state]
    if (rule.slots, rule.row_slots) != state and forms:  # a form with state that its numbers do not need
        rule = forms[0](**given)
    if (rule.slots, rule.row_slots) != state:
        raise ValueError(f"its {rule} has slots {state[0]} and row slots {state[1]}")
    return rule
