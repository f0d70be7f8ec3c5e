"""Whole steps, lookup and update, against torch, FBGEMM and JAX."""

from typing import Any

import numpy as np

import sparsembed as se

from ..workload import Batches, Size
from . import fbgemm, ours
from .entry import Contest, Entry

_RULES: dict[str, tuple[se.rules.Rule, dict[str, float]]] = {  # torch's name of it -> ours, torch's arguments
    "SparseAdam": (ours.SPARSE_ADAM, {"lr": 1e-3}),
    "Adagrad": (se.Adagrad(lr=1e-2), {"lr": 1e-2}),
    "SGD": (se.SGD(lr=1e-2), {"lr": 1e-2}),
}


def _torch_step(batches: Batches, sparse: bool, optimizer: str, arguments: dict[str, Any]) -> Entry:
    import torch

    weight, ids, grads, _ = batches.torch()
    embedding = torch.nn.Embedding(*weight.shape, sparse=sparse, _weight=weight.clone())
    rule = getattr(torch.optim, optimizer)(embedding.parameters(), **arguments)

    def step(i: int) -> Any:
        rule.zero_grad()
        vectors = embedding(ids[i])
        vectors.backward(grads[i])
        rule.step()
        return vectors

    return Entry(step, lambda vectors: np.concatenate([each.detach() for each in (embedding.weight, vectors)]))


def torch_training(size: Size, stream: str, optimizer: str = "SparseAdam", lookups: int = 0) -> Contest:
    """``nn.Embedding(sparse=True)`` and its optimizer."""
    # Small batches come in more kinds: they would all fit into the second-level cache.
    batches = Batches(size, stream, lookups=lookups, batches=64 if lookups else 0)
    rule, arguments = _RULES[optimizer]
    peers = {f"torch {optimizer}": _torch_step(batches, True, optimizer, arguments)}
    return ours.step(batches, rule)._replace(peers=peers)


def dense_training(size: Size, stream: str, rows: int = 1) -> Contest:
    """Adam that equals dense Adam, against torch's fused dense Adam on the dense gradient; `rows` times as many."""
    batches = Batches(size._replace(num_rows=rows * size.num_rows), stream)
    peers = {"torch Adam(fused=True), dense": _torch_step(batches, False, "Adam", {"lr": 1e-3, "fused": True})}
    return ours.step(batches, se.Adam(lr=1e-3))._replace(peers=peers)


def jax_training(size: Size, stream: str) -> Contest:
    """Adam that equals dense Adam, against optax's on the gradient that ``segment_sum`` makes, all of it jitted."""
    import jax
    import optax

    batches = Batches(size, stream)
    adam = optax.adam(1e-3)

    def train(weight: Any, state: Any, ids: Any, grads: Any) -> Any:
        vectors = jax.numpy.take(weight, ids, axis=0)
        dense = jax.ops.segment_sum(grads, ids, weight.shape[0])
        change, state = adam.update(dense, state)
        return weight + change, state, vectors

    jitted = jax.jit(train, donate_argnums=(0, 1))
    ids = [jax.numpy.asarray(each, "int32") for each in batches.ids]
    grads = [jax.numpy.asarray(each) for each in batches.grads]
    weight = jax.numpy.array(batches.weight)
    held = [weight, adam.init(weight)]

    def step(i: int) -> Any:
        held[0], held[1], vectors = jax.block_until_ready(jitted(*held, ids[i], grads[i]))
        return vectors

    peers = {"optax adam, dense": Entry(step, lambda vectors: np.concatenate([held[0], vectors]))}
    return ours.step(batches, se.Adam(lr=1e-3))._replace(peers=peers)


def fbgemm_lookup(size: Size, stream: str) -> Contest:
    batches = Batches(size, stream)
    ways = {
        "FBGEMM, PoolingMode.NONE": ("NONE", np.array([0, batches.lookups])),
        "FBGEMM, bags of one": ("SUM", np.arange(batches.lookups + 1)),
    }
    peers = {name: _fbgemm_step(batches, *way) for name, way in ways.items()}
    return ours.step(batches, ours.ROWWISE)._replace(peers=peers)


def fbgemm_pooled(size: Size, stream: str) -> Contest:
    batches = Batches(size, stream, grads=size.lookups // size.bag)
    return ours.pooled_step(batches)._replace(peers={"FBGEMM": _fbgemm_step(batches, "SUM", batches.offsets)})


def _fbgemm_step(batches: Batches, pooling: str, offsets: Any) -> Entry:
    forward, weight = fbgemm.module(batches, pooling, offsets)
    grads = batches.torch()[2]

    def step(i: int) -> Any:
        vectors = forward(i)
        vectors.backward(grads[i])
        return vectors

    return Entry(step, lambda vectors: np.concatenate([weight, vectors.detach()]))
