"""Stochastic gradient descent: plain, with weight decay, with momentum."""

import math
from dataclasses import KW_ONLY, dataclass, fields
from functools import partial
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ._catch_up import CatchUp
from ._forms import decayed, forms, is_on, touched
from ._history import FARTHEST, History
from ._rule import Rule, Schedule, check_number

_PRODUCT, _UNTIL, _SLOPE = 4, 5, 6  # columns of the history after the 2 x 2 matrix


class SGDHyper(NamedTuple):
    lr: float


def _form(given: dict[str, Any]) -> type:
    """Return the class that keeps only the state these hyperparameters need."""
    if is_on(given, "momentum"):
        return MomentumSGD
    if is_on(given, "weight_decay"):
        return DecayedSGD
    return TouchedSGD if is_on(given, "touched_weight_decay") else SGD


@forms(_form)
@dataclass(frozen=True, repr=False)
class SGD(Rule):
    """Stochastic gradient descent, as ``torch.optim.SGD`` on the dense gradient.

    Without momentum and decay ``w -= lr * g``.  Else, with g = 0 for rows not in the batch, ``d = g +
    weight_decay * w``, ``b = momentum * b + (1 - dampening) * d`` (at the first step ``b = d``) and
    ``w -= lr * b``, or with nesterov ``w -= lr * (d + momentum * b)``.

    Parameters
    ----------
    lr : float or callable of the step
        Learning rate, finite and not negative.
        A function gets the number of the update, from 1; schedules that count from 0, such as those of optax, are
        ``lambda step: schedule(step - 1)``.
    momentum : float
        In [0, 1), and such that a row comes to rest within 16,384 steps without a gradient.
    dampening : float
        In [0, 1]; needs momentum.
    nesterov : bool
        Needs momentum, and no dampening.
    weight_decay : float
        L2 decay of all rows at each step.
    touched_weight_decay : float
        L2 decay of the rows of a step alone: their gradient gets ``touched_weight_decay * w`` once, after the
        gradients of repeated ids are summed.  FBGEMM's mode "L2".  Not with `weight_decay`.

    Raises
    ------
    TypeError, ValueError
        For hyperparameters of another type or out of range.

    Notes
    -----
    State: none without momentum and decay.  Momentum adds the slot ``momentum_buffer``; momentum and decay add one
    int32 a row, the last step of the row.  Rows catch up when they are read and when they are updated: steps without a
    gradient multiply (w, b) by a 2 x 2 matrix, the same for all rows that missed the same steps.  After `reach` steps
    only the slower mode of the matrix is left, one factor per step.

    References
    ----------
    Sutskever et al., "On the importance of initialization and momentum in deep learning", ICML 2013,
    https://proceedings.mlr.press/v28/sutskever13.html; formula: torch/optim/sgd.py.

    Examples
    --------
    >>> import numpy as np, sparsembed as se
    >>> table = se.EmbeddingTable.from_array(np.zeros((4, 2), np.float32), optimizer=se.SGD(lr=0.5))
    >>> table.update([1, 1], np.ones((2, 2), np.float32))
    >>> table.weight[1]
    array([-1., -1.], dtype=float32)
    >>> table = se.EmbeddingTable.from_array(np.zeros((4, 1)), optimizer=se.SGD(lr=1.0, momentum=0.5))
    >>> table.update([1], np.array([[1.0]]))
    >>> table.update([2], np.array([[1.0]]))  # row 1 moves on
    >>> table.weight.ravel()
    array([ 0. , -1.5, -1. ,  0. ])
    """

    lr: Schedule
    _: KW_ONLY
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    touched_weight_decay: float = 0.0

    Hyper: ClassVar[type] = SGDHyper

    def __repr__(self) -> str:
        shown = [f"{f.name}={getattr(self, f.name)}" for f in fields(self) if getattr(self, f.name) != f.default]
        return f"SGD({', '.join(shown)})"

    def _check(self, name: str, value: Any) -> None:
        if name == "nesterov":
            if not isinstance(value, bool | np.bool_):
                raise TypeError(f"SGD(nesterov=...) must be True or False, got {value!r}")
            if value and (self.momentum == 0 or self.dampening != 0):
                raise ValueError("SGD(nesterov=True) needs momentum, and no dampening, as in torch")
        elif name == "momentum":
            check_number("SGD(momentum=...)", value, below=1.0)
            if reach(value) > FARTHEST:
                raise ValueError(
                    f"SGD(momentum=...) must let a row come to rest within {FARTHEST} steps, got {value!r}; use less"
                )
        elif name == "lr" and callable(value):
            return
        else:
            check_number(f"SGD({name}=...)", value)
            if name == "dampening" and not value <= 1:
                raise ValueError(f"SGD(dampening=...) must be at most 1, got {value!r}")
            if name == "dampening" and value and self.momentum == 0:
                raise ValueError(f"SGD(dampening={value!r}) needs momentum, else it would do nothing")
            if name == "touched_weight_decay" and value and self.weight_decay:
                raise ValueError(
                    f"SGD(touched_weight_decay={value!r}) decays the rows of a step, and weight_decay="
                    f"{self.weight_decay!r} all rows; pass one of them"
                )

    def hyper(self, step: int) -> tuple[float, ...]:
        return (self.rate(step),)

    @staticmethod
    def step(w, g, s, a, hp):
        return w - hp.lr * g, s


class DecayedSGDHyper(NamedTuple):
    lr: float
    l2: float


class DecayedSGDGap(NamedTuple):
    keep: float


class DecayedSGDCatchUp(CatchUp):
    """Missed steps multiply a weight by a product of factors."""

    Gap = DecayedSGDGap

    @staticmethod
    def history(rule: Any, dtype: np.dtype[Any], base: int) -> History:
        def advance(history: History, t: int) -> tuple[int, Any]:
            return t, history.entries[t - 1 : t] * (1 - history.exact[t, 0] * rule.weight_decay)

        history = History(1, 2, np.zeros((1, 1)), 0, advance, dtype, base, product=0, first=(1.0,))
        history.by_step = True
        return history

    @staticmethod
    def gap(entries, first, newest, ages, reach, out, hp):
        out[0] = entries[newest, 0] / entries[first, 0]

    @staticmethod
    def catch_up(w, s, c, hp):
        return c.keep * w, s


@dataclass(frozen=True, repr=False)
class DecayedSGD(SGD, form=True):
    """SGD with weight decay and without momentum: rows shrink by a factor in each step."""

    Hyper = DecayedSGDHyper
    catching_up = DecayedSGDCatchUp

    def _check(self, name: str, value: Any) -> None:
        super()._check(name, value)
        _without_momentum(name, value)

    def hyper(self, step: int) -> tuple[float, ...]:
        return self.rate(step), self.weight_decay or self.touched_weight_decay

    @staticmethod
    def step(w, g, s, a, hp):
        return w - hp.lr * decayed(w, g, hp), s


class TouchedSGDHyper(NamedTuple):
    lr: float
    l2: float


@dataclass(frozen=True, repr=False)
class TouchedSGD(SGD, form=True):
    """SGD with decay of touched rows and without momentum: rows miss no steps."""

    Hyper = TouchedSGDHyper

    def _check(self, name: str, value: Any) -> None:
        super()._check(name, value)
        _without_momentum(name, value)
        if name == "weight_decay" and value != 0:
            raise ValueError(f"SGD(weight_decay={value!r}) keeps state that SGD without it has not; make a new SGD")

    def hyper(self, step: int) -> tuple[float, ...]:
        return super().hyper(step) + touched(self)

    @staticmethod
    def step(w, g, s, a, hp):
        return w - hp.lr * decayed(w, g, hp), s


class MomentumSGDHyper(NamedTuple):
    lr: float
    momentum: float
    rest: float
    l2: float
    own: float
    ahead: float


class MomentumSGDGap(NamedTuple):
    """The 2 x 2 matrix of the missed steps, which multiplies (w, b)."""

    ww: float
    wb: float
    bw: float
    bb: float


class MomentumSGDCatchUp(CatchUp):
    """Missed steps multiply (w, b) by a product of matrices."""

    Gap = MomentumSGDGap

    @staticmethod
    def history(rule: Any, dtype: np.dtype[Any], base: int) -> History:
        # The faster mode decays at least by sqrt(momentum) per step: with weight decay it takes twice the steps.
        far = int(reach(rule.momentum)) * (2 if rule.weight_decay else 1)

        def advance(history: History, t: int) -> tuple[int, Any]:
            first, (ww, wb, bw, bb) = max(0, t - far), _matrix(history.exact[t], rule)
            rows = history.entries[first : t + 1].copy()
            young = rows[:-1]
            young[:, 0:2], young[:, 2:4] = (
                ww * young[:, 0:2] + wb * young[:, 2:4],
                bw * young[:, 0:2] + bb * young[:, 2:4],
            )
            slope = rows[-2, _SLOPE]  # b / w of the slower mode
            factor = ww + wb * slope
            product = rows[-2, _PRODUCT] * factor
            young[:, _UNTIL] = product
            slope = (bw + bb * slope) / factor if factor else 0.0
            rows[-1] = (1.0, 0.0, 0.0, 1.0, product, product, slope)
            return first, rows

        first = (1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0)
        history = History(7, 6, np.zeros((1, 1)), far, advance, dtype, base, _PRODUCT, first)
        history.kind_of_step = partial(_swings, rule=rule)
        history.by_step = not rule.touched_weight_decay
        return history

    @staticmethod
    def gap(entries, first, newest, ages, reach, out, hp):
        for k in range(4):
            out[k] = entries[first, k]
        if newest - first > reach:
            product, until = entries[newest, 4], entries[first, 5]
            share = product / until if product != until else 1.0
            for k in range(2):
                out[k] = entries[first, k] * share
                out[k + 2] = entries[newest, 6] * out[k]

    @staticmethod
    def catch_up(w, s, c, hp):
        return c.ww * w + c.wb * s[0], (c.bw * w + c.bb * s[0],)


@dataclass(frozen=True, repr=False)
class MomentumSGD(SGD, form=True):
    """SGD with momentum."""

    Hyper = MomentumSGDHyper
    catching_up = MomentumSGDCatchUp
    slots = ("momentum_buffer",)

    def hyper(self, step: int) -> tuple[float, ...]:
        rest = 1 - self.dampening if step > 1 else 1.0
        own, ahead = (1.0, self.momentum) if self.nesterov else (0.0, 1.0)
        return self.rate(step), self.momentum, rest, self.weight_decay or self.touched_weight_decay, own, ahead

    @staticmethod
    def step(w, g, s, a, hp):
        d = decayed(w, g, hp)
        b = hp.momentum * s[0] + hp.rest * d
        return w - hp.lr * (hp.own * d + hp.ahead * b), (b,)


def _matrix(hyper: Any, rule: Any) -> tuple[float, float, float, float]:
    """Return the 2 x 2 matrix by which a step without a gradient multiplies (w, b)."""
    lr, momentum, rest, _, own, ahead = map(float, hyper)
    l2 = rule.weight_decay  # that of touched rows alone is none here
    return 1 - lr * l2 * (own + ahead * rest), -lr * ahead * momentum, rest * l2, momentum


def _swings(hyper: tuple[float, ...], rule: Any) -> bool:
    """Whether rows oscillate around zero: the eigenvalues are complex, and no mode is the slower one."""
    ww, wb, bw, bb = _matrix(hyper, rule)
    return (ww + bb) ** 2 < 4 * (ww * bb - wb * bw)


def _without_momentum(name: str, value: Any) -> None:
    if name == "momentum" and value != 0:
        raise ValueError(f"SGD(momentum={value!r}) keeps state that SGD without momentum has not; make a new SGD")


def reach(momentum: float) -> float:
    """Return how many steps without a gradient move a row by more than 2**-64 of the first step."""
    return 1 if momentum == 0 else math.ceil(64 * math.log(2) / -math.log(momentum))


def addition(alpha: float, dtype: Any) -> SGDHyper:
    """Return the hyperparameters for which plain SGD is a scatter-add, ``w += alpha * g``."""
    return SGDHyper(dtype.type(-alpha))
