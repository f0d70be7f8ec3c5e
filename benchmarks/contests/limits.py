"""Ours against itself and against the speed of memory."""

import numpy as np

import sparsembed as se

from .. import ids as streams
from ..workload import Batches, Size
from . import ours
from .entry import Contest, Entry


def fused_update(size: Size, stream: str) -> Contest:
    """Against the limit: the peer is a copy of the bytes that must move, whose time is known."""
    return ours.update(Batches(size, stream))


def flat_update(size: Size, stream: str) -> Contest:
    """A large table against a small one: as many ids, all distinct, other rows each time."""
    large, small, lookups = size.flat
    number = max(4 * size.batches, 2)
    rng = np.random.default_rng(2021)
    grads = [rng.standard_normal((lookups, size.dim), np.float32) for _ in range(number)]

    def entry(num_rows: int) -> Entry:
        weight = se.initializers.zeros((num_rows, size.dim))
        table = se.EmbeddingTable.from_array(weight, optimizer=ours.SPARSE_ADAM)
        ids = [streams.make(stream, num_rows, lookups, rng) for _ in range(number)]
        table.update(ids[0], grads[0])
        first = weight[ids[0]].copy()  # equal: both tables were fresh
        return Entry(lambda i: table.update(ids[i], grads[i]), lambda _: first)

    moved = lookups * (8 + 7 * 4 * size.dim)
    return Contest(number, moved, entry(large), {f"itself, {small:,} rows": entry(small)})


def against_sparse_adam(size: Size, stream: str) -> Contest:
    """What being equal to dense Adam costs: against our own SparseAdam."""
    batches = Batches(size, stream)
    exact, frozen = ours.step(batches, se.Adam(lr=1e-3)), ours.step(batches)
    nothing = np.zeros(1)  # two optimizers: their results differ
    peers = {"itself, SparseAdam": Entry(frozen.ours.step, lambda _: nothing)}
    return exact._replace(ours=Entry(exact.ours.step, lambda _: nothing), peers=peers)
