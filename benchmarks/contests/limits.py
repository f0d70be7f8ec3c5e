"""Ours against itself and against the speed of memory."""

import numpy as np

import sparsembed as se

from .. import ids as streams
from ..workload import Batches, Size
from . import ours
from .entry import Contest, Entry


def fused_update(size: Size, stream: str) -> Contest:
    """Against the limit: the peer is a copy of the bytes that must move, whose time is known.

    What is compared is the first step, with the float64 reference on the rows that it touches.
    """
    batches = Batches(size, stream)
    contest = ours.update(batches)
    contest.ours.step(0)
    rows, ids = np.unique(batches.ids[0], return_inverse=True)
    first = contest.ours.result(None)[rows].copy()
    rule, weight = ours.SPARSE_ADAM, batches.weight[rows]
    state = {name: np.zeros_like(weight) for name in rule.slots}
    expected, _ = se.reference.update(rule, weight, state, ids, batches.grads[0], 1)
    compared = Entry(lambda _: None, lambda _: expected)
    return contest._replace(ours=Entry(contest.ours.step, lambda _: first), also={"reference": compared})


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
    """What being equal to dense Adam costs: against our own SparseAdam.

    What is compared are the rows that the last batch is the first to touch: both rules move them alike, but for
    gradients near `eps`, which one adds before the correction of the bias and the other after it.
    """
    batches = Batches(size, stream)
    exact, frozen = ours.step(batches, se.Adam(lr=1e-3)), ours.step(batches)
    last = se.coalesce(batches.ids[-1], batches.grads[-1], size.num_rows)
    new = np.isin(last.rows, np.concatenate(batches.ids[:-1]), invert=True)
    rows, large = last.rows[new], np.abs(last.values[new]) > 1e-3
    assert large.any(), "the last batch touches no new row: nothing would be compared"

    def moved(contest: Contest) -> Entry:
        return Entry(contest.ours.step, lambda vectors: contest.ours.result(vectors)[rows][large])

    return exact._replace(ours=moved(exact), peers={"itself, SparseAdam": moved(frozen)})
