"""The squared loss."""

from dataclasses import dataclass
from typing import NamedTuple

from ._loss import Loss


class SquaredHyper(NamedTuple):
    half: float


@dataclass(frozen=True)
class Squared(Loss):
    """Half of the squared difference of each score and its label: ``(s - y)**2 / 2``.

    Notes
    -----
    Labels are numbers, one a score.

    Examples
    --------
    >>> import numpy as np, sparsembed as se
    >>> table = se.EmbeddingTable.from_array(np.array([[0.0], [2.0]]))
    >>> table.dot_loss([[0, 1]], [[3.0]], labels=[[1.0, 4.0]], loss=se.losses.Squared())
    (2.5, array([[4.]]), array([[-1.,  2.]]))
    """

    Hyper = SquaredHyper

    def hyper(self) -> tuple[float, ...]:
        return (0.5,)

    @staticmethod
    def term(s, y, hp):
        d = s - y
        return d * d * hp.half, d
