"""A knowledge graph: DistMult (https://arxiv.org/abs/1412.6575), beside torch's sparse and dense optimizers.

The score of a triple is the sum of head * relation * tail.  Each triple of a batch gets 32 negatives of its own in the
place of its tail; the loss is the softmax over both.  All tools start from the same rows and see the same triples and
negatives, so that they are judged by the same curve: the filtered mean reciprocal rank of the triples to test.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import sparsembed as se

from . import data
from .job import Job, Line, Tool

Array = Any
SPARSE, DENSE = "torch, sparse gradients, SparseAdam", "torch, Adam(fused=True)"
LAZY, EXACT = "NumPy loop, SparseAdam", "NumPy loop, Adam"
DOT = "torch loop with sparsembed.torch.dot, SparseAdam"


class Graph(NamedTuple):
    """Triples, the sizes of the model, and how long it is trained."""

    triples: data.Triples
    dim: int
    batch: int
    negatives: int
    steps: int  # of a piece

    def batches(self, piece: int) -> list[tuple[Array, Array, Array]]:
        """Return heads, relations, and tails with their negatives (n, 1 + negatives), for each step of a piece."""
        train, size = self.triples.train, self.batch
        each_epoch = max(len(train) // size, 1)
        steps = range(piece * self.steps, (piece + 1) * self.steps)
        orders = {e: np.random.default_rng([e, 1]).permutation(len(train)) for e in {k // each_epoch for k in steps}}
        shape = (self.steps, size, 1 + self.negatives)
        ids = np.random.default_rng([piece, 2]).integers(0, self.triples.entities, shape)
        found = []
        for k, wrong in zip(steps, ids, strict=True):
            epoch, at = divmod(k, each_epoch)
            heads, kinds, tails = np.ascontiguousarray(train[orders[epoch][at * size : (at + 1) * size]].T)
            wrong[: len(tails), 0] = tails
            found.append((heads, kinds, wrong[: len(tails)]))
        return found

    def rows(self) -> tuple[Array, Array]:
        """Return the first rows of entities and relations."""
        rng = np.random.default_rng(3)
        shapes = ((self.triples.entities, self.dim), (self.triples.relations, self.dim))
        entities, relations = (rng.normal(0, 0.3, shape).astype(np.float32) for shape in shapes)
        return entities, relations

    def reciprocal_rank(self, entities: Array, relations: Array) -> float:
        """Return the mean of 1 / rank of the right tail, and of the right head, among all that are not known."""
        known: dict[tuple[int, int, int], list[int]] = {}
        for head, kind, tail in self.triples.known.tolist():
            known.setdefault((0, head, kind), []).append(tail)
            known.setdefault((1, tail, kind), []).append(head)
        found = []
        for side in (0, 1):
            asked = self.triples.test[:, :: -1 if side else 1]
            for first in range(0, len(asked), 256):
                given, kinds, right = asked[first : first + 256].T
                scores = (entities[given] * relations[kinds]) @ entities.T
                of_right = scores[np.arange(len(right)), right].copy()
                for line, key in zip(scores, zip(given.tolist(), kinds.tolist(), strict=True), strict=True):
                    line[known[(side, *key)]] = -np.inf
                found.append(1 / (1 + (scores > of_right[:, None]).sum(axis=1)))
        return float(np.concatenate(found).mean())


class Judged:
    """What all trainings share; batches of a piece are made before its first step, and count as its time."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def piece(self, i: int) -> None:
        for heads, kinds, ids in self.graph.batches(i):
            self.step(heads, kinds, ids)

    def step(self, heads: Array, kinds: Array, ids: Array) -> Any:
        raise NotImplementedError

    def rows(self) -> tuple[Array, Array]:
        raise NotImplementedError

    def quality(self) -> float:
        return self.graph.reciprocal_rank(*self.rows())


class Loop(Judged):
    """NumPy: scores with their loss and gradients, and one update of the entities for tails and heads together."""

    def __init__(self, graph: Graph, rule: Any) -> None:
        super().__init__(graph)
        self.entities, self.relations = (se.EmbeddingTable.from_array(each, rule) for each in graph.rows())

    def step(self, heads: Array, kinds: Array, ids: Array) -> None:
        head, relation = self.entities.lookup(heads), self.relations.lookup(kinds)
        query, mean = head * relation, np.full(len(heads), 1 / len(heads), np.float32)
        # The right tail comes first.
        _, grad_query, slope = self.entities.dot_loss(ids, query, loss=se.losses.Softmax(), weights=mean)
        both = [query, grad_query * relation]
        self.entities.update_dot([ids, heads[:, None]], both, [slope, np.ones((len(heads), 1), np.float32)])
        self.relations.update(kinds, grad_query * head)

    def rows(self) -> tuple[Array, Array]:
        return self.entities.weight, self.relations.weight


class Torch(Judged):
    """torch's embeddings, and a step as torch's users write it."""

    def __init__(self, graph: Graph, rate: float, sparse: bool) -> None:
        super().__init__(graph)
        import torch

        self.torch = torch
        self.modules = torch.nn.ModuleList(self.module(torch.from_numpy(each), rate, sparse) for each in graph.rows())
        self.optimizers = self.optimizers_of(rate, sparse)

    def module(self, rows: Any, rate: float, sparse: bool) -> Any:
        return self.torch.nn.Embedding.from_pretrained(rows, freeze=False, sparse=sparse)

    def optimizers_of(self, rate: float, sparse: bool) -> list[Any]:
        optim, found = self.torch.optim, self.modules.parameters()
        return [optim.SparseAdam(list(found), lr=rate) if sparse else optim.Adam(found, lr=rate, fused=True)]

    def scores(self, query: Any, ids: Any) -> Any:
        return self.torch.bmm(self.modules[0](ids), query[:, :, None])[:, :, 0]

    def step(self, heads: Array, kinds: Array, ids: Array) -> Any:
        heads, kinds, ids = map(self.torch.from_numpy, (heads, kinds, ids))
        scores = self.scores(self.modules[0](heads) * self.modules[1](kinds), ids)
        loss = self.torch.nn.functional.cross_entropy(scores, ids.new_zeros(len(ids)))
        for each in self.optimizers:
            each.zero_grad()
        loss.backward()
        for each in self.optimizers:
            each.step()

    def rows(self) -> tuple[Array, Array]:
        entities, relations = (each.weight.detach().numpy() for each in self.modules)
        return entities, relations


class TorchDot(Torch):
    """The same loop with our tables, fused, and our scores."""

    def module(self, rows: Any, rate: float, sparse: bool) -> Any:
        from sparsembed import torch as st

        return st.Embedding.from_pretrained(rows, freeze=False, optimizer=se.SparseAdam(lr=rate), fused=True)

    def optimizers_of(self, rate: float, sparse: bool) -> list[Any]:
        return []

    def scores(self, query: Any, ids: Any) -> Any:
        from sparsembed import torch as st

        return st.dot(self.modules[0], ids, query)


def job(size: str) -> Job:
    """Make the job; `size` is "full", "quick" or "tiny"."""
    if size == "tiny":
        graph = Graph(data.triples(300, 3, 400, 40), 8, 64, 4, 3)
    else:
        graph = Graph(data.triples(test=3_134 if size == "full" else 200), 128, 1024, 32, 17 if size == "full" else 5)
    found = graph.triples

    def ours(rule: Callable[..., Any]) -> Any:
        return lambda rate, threads: Loop(graph, rule(lr=rate))

    def torch(kind: Any, sparse: bool) -> Any:
        return lambda rate, threads: kind(graph, rate, sparse)

    rates = (0.003, 0.01, 0.03) if size == "full" else (0.01,)
    tools = [
        Tool(LAZY, "NumPy + sparsembed", ours(se.SparseAdam), rates),
        Tool(EXACT, "NumPy + sparsembed, dense Adam", ours(se.Adam), rates),
        Tool(DOT, "torch + sparsembed", torch(TorchDot, True), rates, ("torch",)),
        Tool(SPARSE, "torch", torch(Torch, True), rates, ("torch",)),
        Tool(DENSE, "torch, dense Adam", torch(Torch, False), rates, ("torch",)),
    ]
    lines = [Line(LAZY, SPARSE, 10), Line(LAZY, DENSE, 4), Line(EXACT, DENSE, 2.5), Line(DOT, SPARSE, 5)]
    name = f"DistMult on {found.name}, {found.entities:,} entities {len(found.train):,} triples, dim {graph.dim}"
    measure = "filtered mean reciprocal rank"
    pieces, look = {"full": (20, 5), "quick": (6, 6), "tiny": (2, 2)}[size]
    return Job("knowledge graph", name, measure, True, 0.01, tools, lines, pieces, look)
