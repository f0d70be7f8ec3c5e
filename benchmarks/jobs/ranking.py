"""A recommender: Bayesian personalised ranking, beside implicit.

64 numbers a row, of which one is the item's bias; the other item of a step is drawn as often as it is taken, and none
that the user took.  Few users and items are judged by the recall of items held out, many by the loss of pairs held out
with one other item each, the same for all.
"""

import functools
import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np

from . import data
from .job import Job, Line, Tool

Array = Any
EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "recommender" / "ranking.py"
IMPLICIT, COMPILED = "implicit", "compiled loop (docs/examples/recommender/ranking.py)"


@functools.cache  # a second module would compile its loop again
def example() -> Any:
    """Return the module of the example."""
    spec = importlib.util.spec_from_file_location("ranking", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = [*sys.path]
    spec.loader.exec_module(module)  # finds its neighbours by sys.path
    sys.path[:] = before
    return module


class Judged:
    """What all trainings share."""

    def __init__(self, found: data.Positives, epochs: int) -> None:
        self.found, self.epochs = found, epochs  # of a piece

    def vectors(self) -> tuple[Array, Array]:
        raise NotImplementedError

    def quality(self) -> float:
        found, (users, items) = self.found, self.vectors()
        if found.users * found.items < 10**8:
            return float(example().recall(users, items, found.train, found.test))
        held = found.test[:100_000]
        other = np.random.default_rng(5).choice(found.train[:, 1], len(held))
        better = np.einsum("nd,nd->n", users[held[:, 0]], items[held[:, 1]] - items[other])
        return float(np.logaddexp(0, -better.astype(np.float64)).mean())


class Implicit(Judged):
    """implicit's compiled loop."""

    def __init__(self, found: data.Positives, epochs: int, rate: float, threads: int) -> None:
        super().__init__(found, epochs)
        from implicit.cpu.bpr import BayesianPersonalizedRanking
        from scipy import sparse

        rng = np.random.default_rng(1)  # a number would make all pieces draw the same
        self.matrix = sparse.csr_array((np.ones(len(found.train), np.float32), found.train.T), self.shape)
        self.matrix = sparse.csr_matrix(self.matrix)
        its = example()
        sizes = {"factors": its.DIM - 1, "regularization": its.DECAY, "num_threads": threads, "random_state": rng}
        self.model = BayesianPersonalizedRanking(learning_rate=rate, iterations=0, **sizes)
        self.model.fit(self.matrix, show_progress=False)  # makes the rows
        self.model.iterations = epochs

    @property
    def shape(self) -> tuple[int, int]:
        return self.found.users, self.found.items

    def piece(self, i: int) -> None:
        self.model.fit(self.matrix, show_progress=False)

    def vectors(self) -> tuple[Array, Array]:
        return self.model.user_factors, self.model.item_factors


class Ours(Judged):
    """The example, compiled, or in batches of some size."""

    def __init__(self, found: data.Positives, epochs: int, rate: float, threads: int, batch: int | None) -> None:
        super().__init__(found, epochs)
        self.threads, self.batch = threads, batch
        self.model = example().Ranking(found.train, found.users, found.items, rate, seed=1)

    def piece(self, i: int) -> None:
        for _ in range(self.epochs):
            if self.batch is None:
                self.model.compiled_pass(self.threads)
            else:
                self.model.pass_of_batches(self.batch)

    def vectors(self) -> tuple[Array, Array]:
        return self.model.users.weight, self.model.items.weight


def job(size: str) -> Job:
    """Make the job of few users and items."""
    users, items, count = (60, 200, 2_000) if size == "tiny" else (671, 6_170, 51_568)
    found = data.ratings(users, items, count)
    return _job("recommender", found, size, (1024, 4096), 2, (0.02, 0.05, 0.1), 1.0, "recall of the first 20", True)


def many(size: str) -> Job:
    """Make the job of many of both."""
    users, items, count = {
        "full": (300_000, 300_000, 2_500_000),
        "quick": (30_000, 30_000, 200_000),
        "tiny": (20_000, 20_000, 5_000),
    }[size]
    found = data.many(users, items, count)
    return _job(
        "recommender, many", found, size, (4096, 16384), 1, (0.05, 0.1, 0.2), 1.3, "loss held out (nats a pair)", False
    )


def _job(
    name: str,
    found: data.Positives,
    size: str,
    batches: tuple[int, ...],
    epochs: int,
    sgd: tuple[float, ...],
    target: float,
    measure: str,
    higher: bool,
) -> Job:
    def ours(batch: int | None) -> Any:
        return lambda rate, threads: Ours(found, epochs, rate, threads, batch)

    adagrad, sgd = ((0.01, 0.02, 0.05), sgd) if size == "full" else ((0.02,), (0.05,))
    loops = {f"NumPy loop, Adagrad, batches of {batch:,}": batch for batch in batches}
    tools = [
        *(Tool(loop, "NumPy + sparsembed", ours(batch), adagrad) for loop, batch in loops.items()),
        Tool(COMPILED, "Numba + sparsembed.jit", ours(None), sgd),
        Tool(IMPLICIT, "implicit", lambda *given: Implicit(found, epochs, *given), sgd, ("implicit",)),
    ]
    lines = [Line(each, IMPLICIT, target) for each in (*loops, COMPILED)]
    text = f"{found.name}, {found.users:,} users, {found.items:,} items, {len(found.train):,} pairs"
    pieces = {"full": 10 if higher else 4, "quick": 6, "tiny": 2}[size]
    return Job(name, text, measure, higher, 0.03, tools, lines, pieces, 2, (1, 2))
