"""Scatter-add and coalesce, against NumPy, SciPy and torch."""

from typing import Any

import numpy as np
import scipy.sparse

from ..workload import Batches, Size
from . import ours
from .entry import Contest, Entry


def numpy_scatter_add(size: Size, stream: str) -> Contest:
    batches = Batches(size, stream)
    weight = batches.weight.copy()

    def step(i: int) -> None:
        np.add.at(weight, batches.ids[i], batches.grads[i])

    return ours.scatter_add(batches)._replace(peers={"numpy.add.at": Entry(step, lambda _: weight)})


def torch_scatter_add(size: Size, stream: str) -> Contest:
    batches = Batches(size, stream)
    weight, ids, grads, _ = batches.torch()
    weight = weight.clone()
    peers = {"torch index_add_": Entry(lambda i: weight.index_add_(0, ids[i], grads[i]), lambda _: weight.numpy())}
    return ours.scatter_add(batches)._replace(peers=peers)


def scipy_coalesce(size: Size, stream: str) -> Contest:
    batches = Batches(size, stream)
    ones, columns = np.ones(batches.lookups, np.float32), np.arange(batches.lookups)

    def step(i: int) -> Any:
        rows, where = np.unique(batches.ids[i], return_inverse=True)
        return scipy.sparse.coo_array((ones, (where, columns)), (len(rows), len(columns))).tocsr() @ batches.grads[i]

    return ours.coalesce(batches)._replace(peers={"scipy one-hot product": Entry(step)})


def torch_coalesce(size: Size, stream: str) -> Contest:
    import torch

    batches = Batches(size, stream)
    _, ids, grads, _ = batches.torch()
    shape = (size.num_rows, size.dim)

    def step(i: int) -> Any:
        return torch.sparse_coo_tensor(ids[i][None], grads[i], shape, check_invariants=False).coalesce().values()

    return ours.coalesce(batches)._replace(peers={"torch coalesce": Entry(step)})
