"""How a kernel reaches a rule: functions that the class of `hp` turns into the rule's own.

In plain Python (NUMBA_DISABLE_JIT) the bodies below run; when a kernel is compiled, the
overloads put the rule's functions, and loads and stores of its slots, in their place.
"""

from collections.abc import Callable
from typing import Any

from numba.core import errors
from numba.core.types.containers import BaseTuple
from numba.extending import overload

from ._rule import RULES, Rule


def has_row_stage(hp):
    """Whether the rule reduces over the row before it steps."""
    return RULES[type(hp)].row is not None


def reduce(w, g, hp):
    """The rule's `reduce`."""
    return RULES[type(hp)].reduce(w, g, hp)


def has_pair(hp):
    """Whether the rule reduces two things over the row, its slots included."""
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


def load(state, i, c, hp):
    """The slots of element (i, c), as a tuple; state (num_rows, slots, dim)."""
    return tuple(state[i, k, c] for k in range(len(RULES[type(hp)].slots)))


def store(state, i, c, s, hp):
    """Write the slots of element (i, c)."""
    for k, value in enumerate(s):
        state[i, k, c] = value


def load_row(row_state, i, hp):
    """The row slots of row i, as a tuple; row_state (num_rows, row_slots)."""
    return tuple(row_state[i, k] for k in range(len(RULES[type(hp)].row_slots)))


def store_row(row_state, i, r, hp):
    """Write the row slots of row i."""
    for k, value in enumerate(r):
        row_state[i, k] = value


# A compiled tuple needs its length spelled out, so there is one reader and writer per length.
def _load0(state, i, c, hp):
    return ()


def _load1(state, i, c, hp):
    return (state[i, 0, c],)


def _load2(state, i, c, hp):
    return (state[i, 0, c], state[i, 1, c])


def _load3(state, i, c, hp):
    return (state[i, 0, c], state[i, 1, c], state[i, 2, c])


def _load4(state, i, c, hp):
    return (state[i, 0, c], state[i, 1, c], state[i, 2, c], state[i, 3, c])


def _load_row0(row_state, i, hp):
    return ()


def _load_row1(row_state, i, hp):
    return (row_state[i, 0],)


def _load_row2(row_state, i, hp):
    return (row_state[i, 0], row_state[i, 1])


def _load_row3(row_state, i, hp):
    return (row_state[i, 0], row_state[i, 1], row_state[i, 2])


def _store0(state, i, c, s, hp):
    pass


def _store1(state, i, c, s, hp):
    state[i, 0, c] = s[0]


def _store2(state, i, c, s, hp):
    state[i, 0, c] = s[0]
    state[i, 1, c] = s[1]


def _store3(state, i, c, s, hp):
    state[i, 0, c] = s[0]
    state[i, 1, c] = s[1]
    state[i, 2, c] = s[2]


def _store4(state, i, c, s, hp):
    state[i, 0, c] = s[0]
    state[i, 1, c] = s[1]
    state[i, 2, c] = s[2]
    state[i, 3, c] = s[3]


def _store_row0(row_state, i, r, hp):
    pass


def _store_row1(row_state, i, r, hp):
    row_state[i, 0] = r[0]


def _store_row2(row_state, i, r, hp):
    row_state[i, 0] = r[0]
    row_state[i, 1] = r[1]


def _store_row3(row_state, i, r, hp):
    row_state[i, 0] = r[0]
    row_state[i, 1] = r[1]
    row_state[i, 2] = r[2]


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


_LOAD = (_load0, _load1, _load2, _load3, _load4)
_LOAD_ROW = (_load_row0, _load_row1, _load_row2, _load_row3)
_STORE = (_store0, _store1, _store2, _store3, _store4)
_STORE_ROW = (_store_row0, _store_row1, _store_row2, _store_row3)


def _rule(hp: Any) -> type[Rule]:
    return RULES[hp.instance_class]


def _as_declared(returned: Any, hp: Any, function: str, declared: str) -> int:
    """Refuse to compile a rule that returns more or fewer slots than it declares: it would write elsewhere."""
    rule = _rule(hp)
    names = getattr(rule, declared)
    if not isinstance(returned, BaseTuple) or len(returned) != len(names):
        raise errors.TypingError(
            f"{rule.__name__}.{function} must return a tuple of {len(names)} numbers for its {declared} {names}, "
            f"got {returned}"
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
    (load, lambda state, i, c, hp: _LOAD[len(_rule(hp).slots)]),
    (store, lambda state, i, c, s, hp: _STORE[_as_declared(s, hp, "step", "slots")]),
    (load_row, lambda row_state, i, hp: _LOAD_ROW[len(_rule(hp).row_slots)]),
    (store_row, lambda row_state, i, r, hp: _STORE_ROW[_as_declared(r, hp, "row", "row_slots")]),
)
for _function, _specialise in SPECIALISATIONS:
    overload(_function)(_specialise)
