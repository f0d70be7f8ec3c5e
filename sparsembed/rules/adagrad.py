"""Adagrad with one accumulator per element."""

from dataclasses import KW_ONLY, dataclass
from math import sqrt
from typing import ClassVar, NamedTuple

from ._forms import decayed, forms, is_on, shown, touched
from ._rule import Rule, Schedule, helper


class AdagradHyper(NamedTuple):
    step_size: float
    eps: float
    initial: float


@forms(lambda given: TouchedAdagrad if is_on(given, "touched_weight_decay") else Adagrad)
@dataclass(frozen=True)
class Adagrad(Rule):
    """Adagrad, as ``torch.optim.Adagrad`` computes it for sparse gradients.

    ``S += g**2;  w -= lr / (1 + (step - 1) * lr_decay) * g / (sqrt(S) + eps)``, with `S` equal
    to `initial_accumulator_value` before the first gradient.

    Parameters
    ----------
    lr : float or callable of the step
        Learning rate, finite and not negative.
        A function gets the number of the update, from 1; schedules that count from 0, such as those of optax, are
        ``lambda step: schedule(step - 1)``.
    lr_decay : float
        Decay of the learning rate over the steps of the table.
    initial_accumulator_value : float
        What `S` starts from.
    eps : float
        Added to the root of `S`.
    touched_weight_decay : float
        L2 decay of the rows of a step: their gradient gets ``touched_weight_decay * w`` once, after the gradients of
        repeated ids are summed, so that `S` sees it, too.  Other rows do not decay.  FBGEMM's mode "L2".

    Raises
    ------
    TypeError, ValueError
        For hyperparameters of another type or out of range.

    Notes
    -----
    State: slot ``sum``, dim numbers a row, which holds `S` without its initial value, so that
    rows that were never touched take no memory.

    References
    ----------
    Duchi, Hazan, Singer, "Adaptive Subgradient Methods", JMLR 12 (2011),
    https://jmlr.org/papers/v12/duchi11a.html

    Examples
    --------
    >>> import numpy as np, sparsembed as se
    >>> table = se.EmbeddingTable.from_array(np.zeros((4, 1)), optimizer=se.Adagrad(lr=0.1, eps=0.0))
    >>> table.update([2, 2], np.array([[1.0], [3.0]]))
    >>> table.weight[2], table.state["sum"][2]
    (array([-0.1]), array([16.]))
    """

    lr: Schedule = 1e-2
    _: KW_ONLY
    lr_decay: float = 0.0
    initial_accumulator_value: float = 0.0
    eps: float = 1e-10
    touched_weight_decay: float = 0.0

    Hyper: ClassVar[type] = AdagradHyper
    slots = ("sum",)
    squares = ("sum",)

    def hyper(self, step: int) -> tuple[float, ...]:
        step_size = self.rate(step) / (1 + (step - 1) * self.lr_decay)
        return step_size, self.eps, self.initial_accumulator_value

    @staticmethod
    def step(w, g, s, a, hp):
        total = s[0] + g * g
        # A gradient of zero changes nothing; with S = eps = 0 the quotient would be 0 / 0.
        change = g / (sqrt(hp.initial + total) + hp.eps) if g != 0 else g
        return w - hp.step_size * change, (total,)


_step = helper(Adagrad.step)


class TouchedAdagradHyper(NamedTuple):
    step_size: float
    eps: float
    initial: float
    l2: float


@dataclass(frozen=True, repr=False)
class TouchedAdagrad(Adagrad, form=True):
    """Adagrad with decay of touched rows."""

    Hyper = TouchedAdagradHyper
    __repr__ = shown

    def hyper(self, step: int) -> tuple[float, ...]:
        return super().hyper(step) + touched(self)

    @staticmethod
    def step(w, g, s, a, hp):
        return _step(w, decayed(w, g, hp), s, a, hp)
