"""What is timed: for each kind of work, our step and the same step as a user of a peer writes it.

Every function takes a `Size` and a stream of ids and returns a `Contest`.  Frameworks are imported in the
functions that need them.
"""

from .entry import Contest, Entry
from .limits import against_sparse_adam, flat_update, fused_update
from .lookups import fbgemm_pool, jax_gather, numpy_dot, numpy_gather, scipy_pool, torch_dot, torch_gather, torch_pool
from .sums import numpy_scatter_add, scipy_coalesce, torch_coalesce, torch_scatter_add
from .training import dense_training, fbgemm_lookup, fbgemm_pooled, jax_training, torch_training

__all__ = [
    "Contest",
    "Entry",
    "against_sparse_adam",
    "dense_training",
    "fbgemm_lookup",
    "fbgemm_pool",
    "fbgemm_pooled",
    "flat_update",
    "fused_update",
    "jax_gather",
    "jax_training",
    "numpy_dot",
    "numpy_gather",
    "numpy_scatter_add",
    "scipy_coalesce",
    "scipy_pool",
    "torch_coalesce",
    "torch_dot",
    "torch_gather",
    "torch_pool",
    "torch_scatter_add",
    "torch_training",
]
