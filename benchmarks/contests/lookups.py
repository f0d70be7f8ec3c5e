"""Gather and pool, against NumPy, SciPy, torch, FBGEMM and JAX."""

from typing import Any

import numpy as np
import scipy.sparse

from ..workload import Batches, Size
from . import ours
from .entry import Contest, Entry
from .fbgemm import module


def numpy_gather(size: Size, stream: str) -> Contest:
    batches = Batches(size, stream, grads=0)
    out = np.empty((batches.lookups, size.dim), np.float32)
    peers = {
        "numpy.take": Entry(lambda i: np.take(batches.weight, batches.ids[i], axis=0, out=out)),
        "numpy.take, clip": Entry(lambda i: np.take(batches.weight, batches.ids[i], axis=0, out=out, mode="clip")),
    }
    return ours.gather(batches)._replace(peers=peers)


def torch_gather(size: Size, stream: str) -> Contest:
    import torch

    batches = Batches(size, stream, grads=0)
    weight, ids, _, _ = batches.torch()
    out = torch.from_numpy(np.empty((batches.lookups, size.dim), np.float32))
    peers = {"torch index_select": Entry(lambda i: torch.index_select(weight, 0, ids[i], out=out))}
    return ours.gather(batches)._replace(peers=peers)


def jax_gather(size: Size, stream: str) -> Contest:
    import jax

    batches = Batches(size, stream, grads=0)
    weight, ids = jax.numpy.asarray(batches.weight), [jax.numpy.asarray(each, "int32") for each in batches.ids]
    take = jax.jit(lambda table, rows: jax.numpy.take(table, rows, axis=0, mode="clip"))
    peers = {"jax take, jitted": Entry(lambda i: take(weight, ids[i]).block_until_ready())}
    return ours.gather(batches)._replace(peers=peers)


def torch_pool(size: Size, stream: str) -> Contest:
    from torch.nn.functional import embedding_bag

    batches = Batches(size, stream, grads=0)
    weight, ids, _, offsets = batches.torch()

    def step(i: int) -> Any:
        return embedding_bag(ids[i], weight, offsets, mode="sum", include_last_offset=True)

    return ours.pool(batches)._replace(peers={"torch embedding_bag": Entry(step)})


def torch_dot(size: Size, stream: str) -> Contest:
    import torch

    batches = Batches(size, stream, grads=size.lookups // size.bag)
    weight, ids, vectors, _ = batches.torch()
    rows = [each.view(-1, size.bag) for each in ids]

    def product(i: int) -> Any:
        return torch.bmm(torch.nn.functional.embedding(rows[i], weight), vectors[i][:, :, None]).reshape(-1)

    def sums(i: int) -> Any:
        return (torch.nn.functional.embedding(rows[i], weight) * vectors[i][:, None]).sum(-1).reshape(-1)

    return ours.dot(batches)._replace(
        peers={"torch embedding + bmm": Entry(product), "torch embedding, * and sum": Entry(sums)}
    )


def numpy_dot(size: Size, stream: str) -> Contest:
    batches = Batches(size, stream, grads=size.lookups // size.bag)

    def step(i: int) -> Any:
        rows = batches.weight[batches.ids[i]].reshape(-1, size.bag, size.dim)
        return np.einsum("bkd,bd->bk", rows, batches.grads[i]).reshape(-1)

    return ours.dot(batches)._replace(peers={"numpy take + einsum": Entry(step)})


def fbgemm_pool(size: Size, stream: str) -> Contest:
    import torch

    batches = Batches(size, stream, grads=0)
    forward, _ = module(batches, "SUM", batches.offsets)

    def step(i: int) -> Any:
        with torch.no_grad():
            return forward(i)

    return ours.pool(batches)._replace(peers={"FBGEMM": Entry(step)})


def scipy_pool(size: Size, stream: str) -> Contest:
    batches = Batches(size, stream, grads=0)
    ones, shape = np.ones(batches.lookups, np.float32), (len(batches.offsets) - 1, size.num_rows)

    def step(i: int) -> Any:
        return scipy.sparse.csr_array((ones, batches.ids[i], batches.offsets), shape) @ batches.weight

    return ours.pool(batches)._replace(peers={"scipy one-hot product": Entry(step)})
