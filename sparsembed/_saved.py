"""Checks of saved state: the step must fit its integer type, and sums of squares must not be negative."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from . import _check as check
from ._frameworks import as_array
from ._typing import Array
from .rules import Rule

LAST_STEP = 2**31 - 2  # largest step if rows catch up: the last step of each row is int32


def check_step(rule: Rule | None, step: int, name: str) -> None:
    """Refuse a step that does not fit its integer type."""
    if rule is not None and rule.catch_up is not None and step > LAST_STEP:
        raise ValueError(f"{name} must be at most {LAST_STEP} with {rule}, whose rows note it in int32, got {step}")
    if step >= 2**63:
        raise ValueError(f"{name} must be below 2**63, got {step}")


def check_next(rule: Rule | None, step: int) -> None:
    """Refuse the step after `step` if it does not fit its integer type."""
    if rule is not None and rule.catch_up is not None and step >= LAST_STEP:
        raise ValueError(f"the table has taken {step} steps, and its int32 column of last steps holds no more")
    if step >= 2**63 - 1:
        raise ValueError(f"the table has taken {step} steps, and int64 holds no more")


def check_slots(rule: Rule | None, slots: Mapping[str, Array], name: str) -> None:
    """Refuse negative sums of squares: their square roots would be NaN."""
    for slot in () if rule is None else rule.squares:
        found = slots[slot]
        if (found < 0).any():  # NaN itself is allowed
            where = tuple(int(i) for i in np.argwhere(found < 0)[0])
            raise ValueError(
                f"{name}[{slot!r}] sums squares, so it must not be negative, got {found[where]} at {list(where)}; "
                "the state is damaged, or that of another optimizer"
            )


def read(
    state_dict: Any, expected: Mapping[str, tuple[tuple[int, ...], Any]], rule: Rule | None
) -> tuple[int, dict[str, Array]]:
    """Check "step" and the shape and dtype of each array of a state dict; return the step and the arrays by name."""
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"state_dict must be a mapping, got {type(state_dict).__name__}")
    if wrong := sorted({*expected, "step"} ^ set(state_dict), key=str):
        raise KeyError(f"state_dict must have exactly the keys {[*expected, 'step']}; missing or left over: {wrong}")
    step = _one_integer(state_dict["step"], "state_dict['step']")
    check_step(rule, step, "state_dict['step']")
    found = {name: _array(state_dict[name], name, *expected[name]) for name in expected}
    check_slots(rule, found, "state_dict")
    return step, found


def weights_of(state_dict: Any, columns: Mapping[str, Any], dtype: Any) -> Any:
    """Return what a table with these columns of state can restore: their state if it is there, else weights alone.

    Keys of others are left out; without its state a table has zeros, and is at step 0.
    """
    if not isinstance(state_dict, Mapping) or set(state_dict) == {"weight", "step", *columns}:
        return state_dict
    if columns and {"weight", "step", *columns} <= set(state_dict):  # the state of this table, and more
        return {name: state_dict[name] for name in ("weight", "step", *columns)}
    if "weight" not in state_dict:
        raise KeyError(f"state_dict must have the key 'weight', got {sorted(map(str, state_dict))}")
    if found := columns.keys() & state_dict.keys():
        raise KeyError(
            f"state_dict has only {sorted(found)} of 'step' and {sorted(columns)}; a part of a state cannot be "
            "loaded: leave it out for the weights alone"
        )
    fresh = {name: np.broadcast_to(np.zeros((), dtype), slot.shape) for name, slot in columns.items()}
    return {"weight": state_dict["weight"], "step": 0} | fresh


def _one_integer(value: Any, name: str) -> int:
    """Check a number of steps, which may be an array with one element; return it."""
    array = as_array(value, name)
    if array.size != 1:
        raise ValueError(f"{name} must be one integer, got an array of shape {array.shape}")
    return check.count(array.item(), name, least=0)


def _array(value: Any, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
    array = as_array(value, name)
    if array.shape != shape or array.dtype != dtype:
        raise ValueError(f"state_dict[{name!r}] must be {dtype} {shape}, got {array.dtype} {array.shape}")
    return array
