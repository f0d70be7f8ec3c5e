"""Checks of a saved state: steps that can be counted, arrays that fit, sums of squares that are none below zero."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ._arrays import Array, as_array
from .rules import Rule

LAST_STEP = 2**31 - 2  # of rows that catch up: their last steps are int32


def check_step(rule: Rule | None, step: int, name: str) -> None:
    """Refuse a step that cannot be counted."""
    if rule is not None and rule.catch_up is not None and step > LAST_STEP:
        raise ValueError(f"{name} must be at most {LAST_STEP} with {rule}, whose rows note it in int32, got {step}")
    if step >= 2**63:
        raise ValueError(f"{name} must be below 2**63, got {step}")


def check_slots(rule: Rule | None, slots: Mapping[str, Array], name: str) -> None:
    """Refuse sums of squares below zero, whose roots are NaN."""
    for slot in () if rule is None else rule.squares:
        if (found := slots[slot]).size and found.min() < 0:
            where = tuple(int(i) for i in np.unravel_index(int(found.argmin()), found.shape))
            raise ValueError(
                f"{name}[{slot!r}] sums squares, so it must not be negative, got {found[where]} at {list(where)}; "
                "the state is damaged, or that of another optimizer"
            )


def source(value: Any, name: str, target: Array) -> Array:
    """Check an array of a state dict."""
    source = as_array(value, name)
    if source.shape != target.shape or source.dtype != target.dtype:
        expected = f"{target.dtype} {target.shape}"
        raise ValueError(f"state_dict[{name!r}] must be {expected}, got {source.dtype} {source.shape}")
    return source
