"""Sparse updates of embedding tables at the speed of memory."""

from typing import Any

from . import initializers, losses, rules, storage
from ._process import get_num_threads, set_num_threads, warm_up
from ._versions import show_versions
from .bags import Bags
from .functional import coalesce, gather, scatter_add
from .gradient import RowGradient, clip_by_global_norm
from .plan import Plan, plan
from .pooling import per_sample_weights_gradient, pool, pool_gradient
from .rules import (
    FTRL,
    LAMB,
    SGD,
    Adagrad,
    Adam,
    AdamW,
    PartialRowwiseAdam,
    RMSprop,
    RowwiseAdagrad,
    SparseAdam,
)
from .sampler import NegativeSampler
from .scores import dot
from .storage.loading import load
from .table import EmbeddingTable

__version__ = "0.1.0"
__all__ = [
    "FTRL",
    "LAMB",
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "Bags",
    "EmbeddingTable",
    "NegativeSampler",
    "PartialRowwiseAdam",
    "Plan",
    "RMSprop",
    "RowGradient",
    "RowwiseAdagrad",
    "SparseAdam",
    "clip_by_global_norm",
    "coalesce",
    "dot",
    "gather",
    "get_num_threads",
    "initializers",
    "jit",
    "load",
    "losses",
    "per_sample_weights_gradient",
    "plan",
    "pool",
    "pool_gradient",
    "reference",
    "rules",
    "scatter_add",
    "set_num_threads",
    "show_versions",
    "storage",
    "testing",
    "warm_up",
]


def __dir__() -> list[str]:
    return [*__all__, "__doc__", "__version__", "cuda"]


def __getattr__(name: str) -> Any:
    """Import a module that needs scipy.sparse, a GPU or more of Numba when it is first used."""
    if name in ("cuda", "jit", "reference", "testing"):
        import importlib

        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
