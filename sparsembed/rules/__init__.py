"""Optimizers: each is an immutable value of hyperparameters, in a file of its own."""

from ._rule import Rule
from .adagrad import Adagrad
from .adam import Adam, AdamW
from .ftrl import FTRL
from .lamb import LAMB
from .partial_rowwise_adam import PartialRowwiseAdam
from .rmsprop import RMSprop
from .rowwise_adagrad import RowwiseAdagrad
from .sgd import SGD
from .sparse_adam import SparseAdam

__all__ = [
    "FTRL",
    "LAMB",
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "PartialRowwiseAdam",
    "RMSprop",
    "RowwiseAdagrad",
    "Rule",
    "SparseAdam",
]
