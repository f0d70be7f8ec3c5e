"""Our step of each kind of work, and the bytes that it must move."""

from typing import Any

import numpy as np

import sparsembed as se

from ..workload import Batches
from .entry import Contest, Entry

# Sums of n gradients of size 1 reach sqrt(n); in another order they differ by about that many roundings of that
# size: 6e-8 * n is 3e-4 for the 5,000 lookups of the hottest row of 100,000 in production.
_SUMS = 3e-4
SPARSE_ADAM, ROWWISE = se.SparseAdam(lr=1e-3), se.RowwiseAdagrad(lr=1e-2, eps=1e-8)


def gather(batches: Batches) -> Contest:
    out = np.empty((batches.lookups, batches.size.dim), np.float32)
    entry = Entry(lambda i: se.gather(batches.weight, batches.ids[i], out=out))
    return Contest(batches.number, batches.read(batches.lookups), entry, {})


def pool(batches: Batches) -> Contest:
    entry = Entry(lambda i: se.pool(batches.weight, se.Bags(batches.ids[i], batches.offsets)))
    return Contest(batches.number, batches.read(len(batches.offsets) - 1), entry, {})


def dot(batches: Batches) -> Contest:
    """Scores of batches whose gradients are the vectors of the bags."""
    entry = Entry(lambda i: se.dot(batches.weight, se.Bags(batches.ids[i], batches.offsets), batches.grads[i]))
    moved = batches.read(len(batches.offsets) - 1) + 4 * batches.lookups
    return Contest(batches.number, moved, entry, {})


def scatter_add(batches: Batches) -> Contest:
    weight = batches.weight.copy()

    def step(i: int) -> None:
        se.scatter_add(weight, batches.ids[i], batches.grads[i])

    moved = 8 * batches.lookups + (batches.lookups + 2 * batches.unique) * batches.row_bytes
    return Contest(batches.number, moved, Entry(step, lambda _: weight), {}, _SUMS)


def coalesce(batches: Batches) -> Contest:
    entry = Entry(lambda i: se.coalesce(batches.ids[i], batches.grads[i], batches.size.num_rows).values)
    return Contest(batches.number, batches.read(batches.lookups), entry, {}, _SUMS)


def update(batches: Batches, rule: se.rules.Rule = SPARSE_ADAM) -> Contest:
    table = batches.table(rule)
    entry = Entry(lambda i: table.update(batches.ids[i], batches.grads[i]), lambda _: table.weight)
    return Contest(batches.number, batches.updated(batches.lookups, rule), entry, {})


def step(batches: Batches, rule: se.rules.Rule = SPARSE_ADAM) -> Contest:
    table = batches.table(rule)

    def both(i: int) -> Any:
        vectors = table.lookup(batches.ids[i])
        table.update(batches.ids[i], batches.grads[i])
        return vectors

    moved = batches.read(batches.lookups) + batches.updated(batches.lookups, rule)
    return Contest(batches.number, moved, Entry(both, lambda vectors: np.concatenate([table.weight, vectors])), {})


def pooled_step(batches: Batches, rule: se.rules.Rule = ROWWISE) -> Contest:
    """Of batches whose gradients are those of the bags."""
    table, bags = batches.table(rule), len(batches.offsets) - 1

    def both(i: int) -> Any:
        each = se.Bags(batches.ids[i], batches.offsets)
        vectors = table.pool(each)
        table.update_pooled(each, batches.grads[i])
        return vectors

    moved = batches.read(bags) + batches.updated(bags, rule)
    return Contest(batches.number, moved, Entry(both, lambda vectors: np.concatenate([table.weight, vectors])), {})
