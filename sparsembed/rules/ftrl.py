"""FTRL-Proximal."""

from dataclasses import KW_ONLY, dataclass
from math import sqrt
from typing import Any, NamedTuple

import numpy as np

from ._rule import Rule, Schedule


class FTRLHyper(NamedTuple):
    lr: float
    beta: float
    l1: float
    l2: float


@dataclass(frozen=True)
class FTRL(Rule):
    """Follow the regularised leader, per coordinate (McMahan et al. 2013).

    ``n' = n + g**2;  z += g - (sqrt(n') - sqrt(n)) / lr * w``, and w is 0 where ``abs(z) <= l1``, else
    ``-(z - sign(z) * l1) / ((beta + sqrt(n')) / lr + l2)``.

    Parameters
    ----------
    lr : float or callable of the step
        Learning rate, greater than zero (alpha in the paper).
        A function gets the number of the update, from 1; schedules that count from 0, such as those of optax, are
        ``lambda step: schedule(step - 1)``.
    beta, l1, l2 : float
        Not negative.

    Raises
    ------
    TypeError, ValueError
        For hyperparameters of another type or out of range.

    Notes
    -----
    State: slots ``z`` and ``n``, 2 * dim numbers a row.  Steps without a gradient change nothing.

    The weights that a row starts from are kept: at its first gradient a row gets the `z` whose formula gives
    those weights.  With `z` = 0, as the dense optimizer starts, every row would jump to zero at the first
    step, whether in the batch or not; start from zeros for that.

    References
    ----------
    McMahan et al., "Ad Click Prediction: a View from the Trenches", KDD 2013, algorithm 1.

    Examples
    --------
    >>> import numpy as np, sparsembed as se
    >>> table = se.EmbeddingTable.from_array(np.zeros((3, 1)), optimizer=se.FTRL(lr=1.0, l1=1.0))
    >>> table.update([1, 2], np.array([[0.5], [3.0]]))
    >>> table.weight.ravel()
    array([ 0. ,  0. , -0.5])
    """

    lr: Schedule = 0.1
    _: KW_ONLY
    beta: float = 1.0
    l1: float = 0.0
    l2: float = 0.0

    Hyper = FTRLHyper
    slots = ("z", "n")
    squares = ("n",)

    def rate(self, step: int) -> float:
        lr = super().rate(step)
        if lr == 0:
            raise ValueError(f"FTRL(lr=...) must be greater than zero, got {lr} at step {step}")
        return lr

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(self.lr):
            self.rate(1)

    def hyper(self, step: int) -> tuple[float, ...]:
        return self.rate(step), self.beta, self.l1, self.l2

    def cast(self, values: tuple[float, ...], step: int, dtype: np.dtype[Any]) -> Any:
        hyper = super().cast(values, step, dtype)
        if hyper.lr == 0 or 1 / float(hyper.lr) > float(np.finfo(dtype).max):
            raise ValueError(
                f"FTRL(lr=...) must be greater than zero in {dtype}, and its reciprocal a number, got {values[0]} at "
                f"step {step}"
            )
        return hyper

    @staticmethod
    def step(w, g, s, a, hp):
        n = s[1] + g * g
        z = s[0]
        if s[1] == 0 and w != 0:  # set z so that the formula gives the initial weight
            z = -w * (hp.beta / hp.lr + hp.l2) - (hp.l1 if w > 0 else -hp.l1)
        z = z + (g - (sqrt(n) - sqrt(s[1])) / hp.lr * w)
        shrunk = z - hp.l1 if z > hp.l1 else z + hp.l1 if z < -hp.l1 else z - z
        new = -shrunk / ((hp.beta + sqrt(n)) / hp.lr + hp.l2) if shrunk != 0 else shrunk
        return (new if g != 0 else w), ((z if g != 0 else s[0]), n)
