"""Functions that kernels call; the class of `hp` selects the rule whose function is meant.

In plain Python (NUMBA_DISABLE_JIT) the bodies below run; in a compiled kernel, Numba overloads replace them by
the functions of the rule.
"""

from collections.abc import Callable
from typing import Any

from numba.core import errors
from numba.core.types.containers import BaseTuple
from numba.extending import overload, register_jitable

from ._rule import HELPERS, RULES, Rule


def has_row_stage(hp):
    """Whether the rule reduces over the row before it steps."""
    return RULES[type(hp)].row is not None


def reduce(w, g, hp):
    """The rule's `reduce`."""
    return RULES[type(hp)].reduce(w, g, hp)


def has_pair(hp):
    """Whether the rule reduces two numbers over the row, which may depend on the slots."""
    return RULES[type(hp)].reduce_pair is not None


def reduce_pair(w, g, s, hp):
    """The rule's `reduce_pair`."""
    return RULES[type(hp)].reduce_pair(w, g, s, hp)


def row_pair(x, y, r, hp):
    """The rule's `row_pair`."""
    return RULES[type(hp)].row_pair(x, y, r, hp)


def row(x, r, hp):
    """The rule's `row`."""
    return RULES[type(hp)].row(x, r, hp)


def step(w, g, s, a, hp):
    """The rule's `step`."""
    return RULES[type(hp)].step(w, g, s, a, hp)


def gap(entries, first, newest, ages, reach, out, hp):
    """The rule's `gap`."""
    RULES[type(hp)].gap(entries, first, newest, ages, reach, out, hp)


def catch_up(w, s, c, hp):
    """The rule's `catch_up`."""
    return RULES[type(hp)].catch_up(w, s, c, hp)


def is_guarded(c, hp):
    """The rule's `is_guarded`; without one, its `catch_up` is always exact."""
    guarded = RULES[type(hp)].is_guarded
    return guarded is not None and guarded(c, hp)


def is_unsettled(s, c, hp):
    """The rule's `is_unsettled`."""
    return RULES[type(hp)].is_unsettled(s, c, hp)


def _yes(hp):
    return True


def _no(hp):
    return False


def _no_reduce(w, g, hp):
    return g


def _no_pair(w, g, s, hp):
    return w, g


def _no_row_pair(x, y, r, hp):
    return x, r


def _no_row(x, r, hp):
    return x, r


def _not_guarded(c, hp):
    return False


def _settled(s, c, hp):
    return False


def _rule(hp: Any) -> type[Rule]:
    return RULES[hp.instance_class]


def names_of(hp: Any, which: str) -> tuple[str, ...]:
    """Return the `slots` or `row_slots` of a rule, given Numba's type of its `hp`."""
    names: tuple[str, ...] = getattr(_rule(hp), which)
    return names


def returned(value: Any, hp: Any, function: str, which: str) -> int:
    """Return the number of slots; refuse to compile a rule that returns more or fewer: it would write elsewhere."""
    names = names_of(hp, which)
    if not isinstance(value, BaseTuple) or len(value) != len(names):
        raise errors.TypingError(
            f"{_rule(hp).__name__}.{function} must return a tuple of {len(names)} numbers for its {which} {names}, "
            f"got {value}"
        )
    return len(names)


SPECIALISATIONS: tuple[tuple[Callable[..., Any], Callable[..., Any]], ...] = (
    (has_row_stage, lambda hp: _yes if _rule(hp).row else _no),
    (reduce, lambda w, g, hp: _rule(hp).reduce or _no_reduce),
    (has_pair, lambda hp: _yes if _rule(hp).reduce_pair else _no),
    (reduce_pair, lambda w, g, s, hp: _rule(hp).reduce_pair or _no_pair),
    (row_pair, lambda x, y, r, hp: _rule(hp).row_pair or _no_row_pair),
    (row, lambda x, r, hp: _rule(hp).row or _no_row),
    (step, lambda w, g, s, a, hp: _rule(hp).step),
    (gap, lambda entries, first, newest, ages, reach, out, hp: _rule(hp).gap),
    (catch_up, lambda w, s, c, hp: _rule(hp).catch_up),
    (is_guarded, lambda c, hp: _rule(hp).is_guarded or _not_guarded),
    (is_unsettled, lambda s, c, hp: _rule(hp).is_unsettled or _settled),
)
for _function, _specialise in SPECIALISATIONS:
    overload(_function)(_specialise)
for _function in HELPERS:
    register_jitable(_function)
