"""RMSprop, equal to the dense optimizer."""

import math
from dataclasses import KW_ONLY, dataclass
from math import exp, sqrt
from typing import Any, NamedTuple

import numpy as np

from ._catch_up import CatchUp
from ._history import History
from ._rule import Rule, Schedule, check_number


class RMSpropHyper(NamedTuple):
    lr: float
    alpha: float
    rest: float
    eps: float


class RMSpropGap(NamedTuple):
    alpha: float


class RMSpropCatchUp(CatchUp):
    """Missed steps multiply `v` by a power of `alpha`."""

    Gap = RMSpropGap

    @staticmethod
    def history(rule: Any, dtype: np.dtype[Any], base: int) -> History:
        log = math.log(rule.alpha) if rule.alpha else -math.inf
        history = History(1, 4, np.array([[log]]), 0, None, dtype, base)
        history.by_step = True
        return history

    @staticmethod
    def gap(entries, first, newest, ages, reach, out, hp):
        out[0] = exp((newest - first) * ages[0, 0])

    @staticmethod
    def catch_up(w, s, c, hp):
        return w, (s[0] * c.alpha,)


@dataclass(frozen=True)
class RMSprop(Rule):
    """RMSprop as ``torch.optim.RMSprop`` computes it on the dense gradient.

    ``v = alpha * v + (1 - alpha) * g**2;  w -= lr * g / (sqrt(v) + eps)``, with g = 0 for rows not in the batch.

    Parameters
    ----------
    lr : float or callable of the step
        Learning rate, finite and not negative.
        A function gets the number of the update, from 1; schedules that count from 0, such as those of optax, are
        ``lambda step: schedule(step - 1)``.
    alpha : float
        Decay of `v`, in [0, 1).
    eps : float
        Added to the root of `v`.

    Raises
    ------
    TypeError, ValueError
        For hyperparameters of another type or out of range.

    Notes
    -----
    State: slot ``square_avg``, dim numbers a row, and one int32, the last step of the row.  Steps without a
    gradient do not move a row and shrink `v` by ``alpha``, so catching up is one power.

    References
    ----------
    Tieleman, Hinton, lecture 6.5 of "Neural Networks for Machine Learning" (2012); formula: torch/optim/rmsprop.py.

    Examples
    --------
    >>> import numpy as np, sparsembed as se
    >>> table = se.EmbeddingTable.from_array(np.zeros((4, 1)), optimizer=se.RMSprop(lr=0.1, alpha=0.75))
    >>> table.update([1], np.array([[2.0]]))
    >>> table.update([2], np.array([[2.0]]))
    >>> table.state["square_avg"].ravel(), table.weight.ravel().round(6)
    (array([0.  , 0.75, 1.  , 0.  ]), array([ 0. , -0.2, -0.2,  0. ]))
    """

    lr: Schedule = 1e-2
    _: KW_ONLY
    alpha: float = 0.99
    eps: float = 1e-8

    Hyper = RMSpropHyper
    catching_up = RMSpropCatchUp
    slots = ("square_avg",)
    squares = ("square_avg",)

    def _check(self, name: str, value: Any) -> None:
        super()._check(name, value)
        if name == "alpha":
            check_number("RMSprop(alpha=...)", value, below=1.0)

    def hyper(self, step: int) -> tuple[float, ...]:
        return self.rate(step), self.alpha, 1 - self.alpha, self.eps

    @staticmethod
    def step(w, g, s, a, hp):
        v = hp.alpha * s[0] + hp.rest * (g * g)
        # A row without a gradient does not change; with v = eps = 0 the quotient would be 0 / 0.
        change = g / (sqrt(v) + hp.eps) if g != 0 else g
        return w - hp.lr * change, (v,)
