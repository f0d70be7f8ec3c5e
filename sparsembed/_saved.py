"""Checks of a saved state: steps that can be counted, arrays that fit, sums of squares that are none below zero."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from . import _validate as check
from ._arrays import Array, as_array
from .rules import Rule

LAST_STEP = 2**31 - 2  # of rows that catch up: their last steps are int32


def check_step(rule: Rule | None, step: int, name: str) -> None:
    """Refuse a step that cannot be counted."""
    if rule is not None and rule.catch_up is not None and step > LAST_STEP:
        raise ValueError(f"{name} must be at most {LAST_STEP} with {rule}, whose rows note it in int32, got {step}")
    if step >= 2**63:
        raise ValueError(f"{name} must be below 2**63, got {step}")


def check_next(rule: Rule | None, step: int) -> None:
    """Refuse the step after `step` if it cannot be counted."""
    if rule is not None and rule.catch_up is not None and step >= LAST_STEP:
        raise ValueError(f"the table has taken {step} steps, and its int32 column of last steps holds no more")
    if step >= 2**63 - 1:
        raise ValueError(f"the table has taken {step} steps, and int64 holds no more")


def check_slots(rule: Rule | None, slots: Mapping[str, Array], name: str) -> None:
    """Refuse sums of squares below zero, whose roots are NaN."""
    for slot in () if rule is None else rule.squares:
        found = slots[slot]
        if (found < 0).any():  # beside NaN, too
            where = tuple(int(i) for i in np.argwhere(found < 0)[0])
            raise ValueError(
                f"{name}[{slot!r}] sums squares, so it must not be negative, got {found[where]} at {list(where)}; "
                "the state is damaged, or that of another optimizer"
            )


def read(state_dict: Any, targets: Mapping[str, Array], rule: Rule | None) -> tuple[int, dict[str, Array]]:
    """Check a state dict against the arrays that it is for; returns its step, and arrays apart from those."""
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"state_dict must be a mapping, got {type(state_dict).__name__}")
    if wrong := sorted({*targets, "step"} ^ set(state_dict), key=str):
        raise KeyError(f"state_dict must have exactly the keys {[*targets, 'step']}; missing or left over: {wrong}")
    step = check.step(state_dict["step"], "state_dict['step']")
    check_step(rule, step, "state_dict['step']")
    sources = {name: _source(state_dict[name], name, target) for name, target in targets.items()}
    check_slots(rule, sources, "state_dict")
    for name, source in sources.items():
        if any(np.may_share_memory(source, target) for target in targets.values()):
            sources[name] = source.copy()
    return step, sources


def _source(value: Any, name: str, target: Array) -> Array:
    """Check an array of a state dict."""
    source = as_array(value, name)
    if source.shape != target.shape or source.dtype != target.dtype:
        expected = f"{target.dtype} {target.shape}"
        raise ValueError(f"state_dict[{name!r}] must be {expected}, got {source.dtype} {source.shape}")
    return source
