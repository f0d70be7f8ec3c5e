"""Functions that kernels and losses call; the class of `hp`, or the dtype of a number, selects the function meant.

In plain Python (NUMBA_DISABLE_JIT) the bodies below run; in a compiled kernel, Numba overloads replace them.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba.extending import overload

from ._exponential import double_exp, double_log1p, single_exp, single_log1p
from ._loss import LOSSES


def has_term(hp):
    """Whether each score has a loss, by its label."""
    return LOSSES[type(hp)].term is not None


def has_pair(hp):
    """Whether pairs of scores have a loss."""
    return LOSSES[type(hp)].pair is not None


def term(s, y, hp):
    """The loss's `term`."""
    return LOSSES[type(hp)].term(s, y, hp)


def pair(d, hp):
    """The loss's `pair`."""
    return LOSSES[type(hp)].pair(d, hp)


def exp_of(x):
    """``exp(x)`` for x not above 0."""
    return single_exp(x) if type(x) is np.float32 else double_exp(x)


def log1p_of(e):
    """``log(1 + e)`` for e from 0 to 1."""
    return single_log1p(e) if type(e) is np.float32 else double_log1p(e)


def _yes(hp):
    return True


def _no(hp):
    return False


def _no_term(s, y, hp):
    return s, s


def _no_pair(d, hp):
    return d, d


def _loss(hp: Any) -> Any:
    return LOSSES[hp.instance_class]


SPECIALISATIONS: tuple[tuple[Callable[..., Any], Callable[..., Any]], ...] = (
    (has_term, lambda hp: _yes if _loss(hp).term else _no),
    (has_pair, lambda hp: _yes if _loss(hp).pair else _no),
    (term, lambda s, y, hp: _loss(hp).term or _no_term),
    (pair, lambda d, hp: _loss(hp).pair or _no_pair),
    (exp_of, lambda x: single_exp if x.bitwidth == 32 else double_exp),
    (log1p_of, lambda e: single_log1p if e.bitwidth == 32 else double_log1p),
)
for _function, _specialise in SPECIALISATIONS:
    overload(_function)(_specialise)
