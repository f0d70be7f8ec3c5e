"""The pairwise logistic loss."""

from dataclasses import dataclass
from typing import NamedTuple

from ._dispatch import exp_of, log1p_of
from ._loss import Loss


class PairwiseHyper(NamedTuple):
    zero: float
    one: float


@dataclass(frozen=True)
class Pairwise(Loss):
    """Pairwise logistic loss: the first id of a bag is preferred to each other one, ``log(1 + exp(other - first))``.

    Notes
    -----
    The loss of Bayesian personalised ranking (BPR).  It takes no labels.  A bag whose first id is the padding, or that
    has no other id, has no loss.

    References
    ----------
    Rendle et al., "BPR: Bayesian Personalized Ranking from Implicit Feedback", UAI 2009,
    https://arxiv.org/abs/1205.2618

    Examples
    --------
    >>> import numpy as np, sparsembed as se
    >>> table = se.EmbeddingTable.from_array(np.array([[0.0], [1000.0]]))
    >>> table.dot_loss([[0, 1]], [[1.0]], loss=se.losses.Pairwise())
    (1000.0, array([[1000.]]), array([[-1.,  1.]]))
    """

    Hyper = PairwiseHyper

    def hyper(self) -> tuple[float, ...]:
        return 0.0, 1.0

    @staticmethod
    def pair(d, hp):
        e = exp_of(-abs(d))
        return (hp.zero if d <= 0 else d) + log1p_of(e), (hp.one if d > 0 else e) / (hp.one + e)
