"""How rows catch up with missed steps, for rules that equal the dense optimizer of the same name."""

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from ._history import History

_FUNCTIONS = ("gap", "catch_up", "is_guarded", "is_unsettled")
PARTS = ("Gap", *_FUNCTIONS, "history")


class CatchUp:
    """The effect of steps without a gradient on a row; the attribute `catching_up` of a rule is such a class.

    All functions are static; those but `history` run in kernels, on scalars, and must not contain float literals where
    they compute with elements.  A rule may define these parts itself instead: `Rule` then makes the class.

    Attributes
    ----------
    Gap : NamedTuple class
        The coefficients of some missed steps, shared by all rows that missed the same steps.

    Notes
    -----
    ``history(rule, dtype, base) -> History``
        Start a history at a step that every row has taken.  As a method of a rule, ``history(self, dtype, base)``.
    ``gap(entries, first, newest, ages, reach, out, hp)``
        Write the fields of `Gap` for the steps after `first`, up to `newest`, to `out`; in float64.
    ``catch_up(w, s, c, hp) -> (w, s)``
        Element and slots after the missed steps; `c` is a `Gap`.
    ``is_guarded(c, hp)`` and ``is_unsettled(s, c, hp)``
        Optional: whether `catch_up` may be inexact for some elements, and whether it is for one with slots `s`.  A row
        with such an element takes its missed steps one by one.
    """

    Gap: ClassVar[type]
    gap: ClassVar[Callable[..., None]]
    catch_up: ClassVar[Callable[..., Any]]
    is_guarded: ClassVar[Callable[..., Any] | None] = None
    is_unsettled: ClassVar[Callable[..., Any] | None] = None

    @staticmethod
    def history(rule: Any, dtype: np.dtype[Any], base: int) -> History:
        """Start a history at a step that every row has taken."""
        raise NotImplementedError(f"{type(rule).__name__} must define history(self, dtype, base)")


def collect(rule: Any) -> None:
    """Give a rule class both `catching_up` and the parts of it as attributes, whichever of the two it defines."""
    own = {name: rule.__dict__[name] for name in PARTS if name in rule.__dict__}
    if "catching_up" not in rule.__dict__:
        if own:
            bases = (rule.catching_up or CatchUp,)
            rule.catching_up = type(f"{rule.__name__}CatchUp", bases, own)
        elif rule.catching_up is None:
            return
    elif own:
        raise TypeError(f"{rule.__name__} defines catching_up, so {sorted(own)} must be in that class")
    parts = rule.catching_up
    if parts is None:  # a rule whose rows miss no steps, derived from a rule whose rows do
        parts = type("_Nothing", (), dict.fromkeys(("Gap", *_FUNCTIONS)))
    elif missing := [name for name in ("Gap", "gap", "catch_up") if getattr(parts, name, None) is None]:
        raise TypeError(f"{rule.__name__} must define {missing} of how its rows catch up with steps that they missed")
    rule.Gap = parts.Gap
    for name in _FUNCTIONS:
        function = getattr(parts, name)
        setattr(rule, name, None if function is None else staticmethod(function))
