"""What is timed: for each kind of work, our step and the same step as a user of a peer writes it.

Frameworks are imported in the functions that need them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import sparsembed as se

from . import ids as streams
from .workload import Batches, Size


class Entry(NamedTuple):
    """A contestant: step(i) works on batch i; result(what the last step returned) is what must agree."""

    step: Callable[[int], Any]
    result: Callable[[Any], Any] = np.asarray


class Contest(NamedTuple):
    """Ours against the fastest of a peer's ways."""

    batches: int  # that there are
    moved: float  # bytes that ours must move per step
    ours: Entry
    peers: dict[str, Entry]


RULES: dict[str, tuple[se.rules.Rule, dict[str, float]]] = {  # torch's name of it -> ours, torch's arguments
    "SparseAdam": (se.SparseAdam(lr=1e-3), {"lr": 1e-3}),
    "Adagrad": (se.Adagrad(lr=1e-2), {"lr": 1e-2}),
    "SGD": (se.SGD(lr=1e-2), {"lr": 1e-2}),
}
_ROWWISE = se.RowwiseAdagrad(lr=1e-2, eps=1e-8)


def _our_lookup(batches: Batches, rule: se.rules.Rule) -> Entry:
    table = batches.table(rule)

    def step(i: int) -> None:
        table.lookup(batches.ids[i])
        table.update(batches.ids[i], batches.grads[i])

    return Entry(step, lambda _: table.weight)


def torch_training(size: Size, stream: str, optimizer: str = "", lookups: int = 0) -> Contest:
    import torch

    # Small batches come in more kinds: they would all fit into the second-level cache.
    batches = Batches(size, stream, lookups=lookups, batches=64 if lookups else 0)
    rule, arguments = RULES[optimizer]
    weight, ids, grads, _ = batches.torch()
    embedding = torch.nn.Embedding(*weight.shape, sparse=True, _weight=weight.clone())
    torch_rule = getattr(torch.optim, optimizer)(embedding.parameters(), **arguments)

    def step(i: int) -> None:
        torch_rule.zero_grad()
        embedding(ids[i]).backward(grads[i])
        torch_rule.step()

    peers = {f"torch {optimizer}": Entry(step, lambda _: embedding.weight.detach().numpy())}
    moved = batches.read(batches.lookups) + batches.updated(batches.lookups, rule)
    return Contest(batches.number, moved, _our_lookup(batches, rule), peers)


def dense_training(size: Size, stream: str, rows: int = 1) -> Contest:
    """Adam that equals dense Adam, against torch's fused dense Adam on the dense gradient; `rows` times as many."""
    import torch

    batches = Batches(size._replace(num_rows=rows * size.num_rows), stream)
    rule = se.Adam(lr=1e-3)
    weight, ids, grads, _ = batches.torch()
    embedding = torch.nn.Embedding(*weight.shape, _weight=weight.clone())
    dense = torch.optim.Adam(embedding.parameters(), lr=1e-3, fused=True)

    def step(i: int) -> None:
        dense.zero_grad()
        embedding(ids[i]).backward(grads[i])
        dense.step()

    ours = _our_lookup(batches, rule)
    moved = batches.read(batches.lookups) + batches.updated(batches.lookups, rule)
    peers = {"torch Adam(fused=True), dense": Entry(step, lambda _: embedding.weight.detach().numpy())}
    return Contest(batches.number, moved, ours, peers)


def against_sparse_adam(size: Size, stream: str) -> Contest:
    """What being equal to dense Adam costs: against our own SparseAdam."""
    batches = Batches(size, stream)
    exact, frozen = (_our_lookup(batches, rule) for rule in (se.Adam(lr=1e-3), se.SparseAdam(lr=1e-3)))
    first = Entry(exact.step, lambda _: np.zeros(1))  # two optimizers: their results differ
    moved = batches.read(batches.lookups) + batches.updated(batches.lookups, se.Adam(lr=1e-3))
    return Contest(batches.number, moved, first, {"itself, SparseAdam": Entry(frozen.step, lambda _: np.zeros(1))})


def _fbgemm(batches: Batches, pooling: str, offsets: Any, *, forward_only: bool = False) -> Entry:
    import torch
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen
    from fbgemm_gpu.tbe.config.embedding_config import ComputeDevice, EmbeddingLocation, PoolingMode

    _, ids, grads, _ = batches.torch()
    module = SplitTableBatchedEmbeddingBagsCodegen(
        [(batches.size.num_rows, batches.size.dim, EmbeddingLocation.HOST, ComputeDevice.CPU)],
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        learning_rate=1e-2,
        eps=1e-8,
        pooling_mode=PoolingMode[pooling],
        device="cpu",
    )
    weight = module.split_embedding_weights()[0].detach()
    weight.copy_(torch.from_numpy(batches.weight))
    where = torch.from_numpy(offsets)

    def forward(i: int) -> Any:
        with torch.no_grad():
            return module(ids[i], where)

    def step(i: int) -> None:
        module(ids[i], where).backward(grads[i])

    return Entry(forward) if forward_only else Entry(step, lambda _: weight.numpy())


def fbgemm_lookup(size: Size, stream: str) -> Contest:
    batches = Batches(size, stream)
    n = batches.lookups
    peers = {
        "FBGEMM, PoolingMode.NONE": _fbgemm(batches, "NONE", np.array([0, n])),
        "FBGEMM, bags of one": _fbgemm(batches, "SUM", np.arange(n + 1)),
    }
    return Contest(
        batches.number, batches.read(n) + batches.updated(n, _ROWWISE), _our_lookup(batches, _ROWWISE), peers
    )


def fbgemm_pooled(size: Size, stream: str) -> Contest:
    bags = size.lookups // size.bag
    batches = Batches(size, stream, grads=bags)
    table = batches.table(_ROWWISE)

    def step(i: int) -> None:
        each = se.Bags(batches.ids[i], batches.offsets)
        table.pool(each)
        table.update_pooled(each, batches.grads[i])

    peers = {"FBGEMM": _fbgemm(batches, "SUM", batches.offsets)}
    moved = batches.read(bags) + batches.updated(bags, _ROWWISE)
    return Contest(batches.number, moved, Entry(step, lambda _: table.weight), peers)


def _our_pool(batches: Batches) -> Entry:
    return Entry(lambda i: se.pool(batches.weight, se.Bags(batches.ids[i], batches.offsets)))


def fbgemm_pool(size: Size, stream: str) -> Contest:
    batches = Batches(size, stream, grads=0)
    peers = {"FBGEMM": _fbgemm(batches, "SUM", batches.offsets, forward_only=True)}
    return Contest(batches.number, batches.read(size.lookups // size.bag), _our_pool(batches), peers)


def torch_pool(size: Size, stream: str) -> Contest:
    from torch.nn.functional import embedding_bag

    batches = Batches(size, stream, grads=0)
    weight, ids, _, offsets = batches.torch()

    def step(i: int) -> Any:
        return embedding_bag(ids[i], weight, offsets, mode="sum", include_last_offset=True)

    return Contest(
        batches.number, batches.read(size.lookups // size.bag), _our_pool(batches), {"torch embedding_bag": Entry(step)}
    )


def _our_gather(batches: Batches) -> Entry:
    out = np.empty((batches.lookups, batches.size.dim), np.float32)
    return Entry(lambda i: se.gather(batches.weight, batches.ids[i], out=out))


def torch_gather(size: Size, stream: str) -> Contest:
    import torch

    batches = Batches(size, stream, grads=0)
    weight, ids, _, _ = batches.torch()
    out = torch.from_numpy(np.empty((batches.lookups, size.dim), np.float32))
    peers = {"torch index_select": Entry(lambda i: torch.index_select(weight, 0, ids[i], out=out))}
    return Contest(batches.number, batches.read(batches.lookups), _our_gather(batches), peers)


def numpy_gather(size: Size, stream: str) -> Contest:
    batches = Batches(size, stream, grads=0)
    out = np.empty((batches.lookups, size.dim), np.float32)
    peers = {
        "numpy.take": Entry(lambda i: np.take(batches.weight, batches.ids[i], axis=0, out=out)),
        "numpy.take, clip": Entry(lambda i: np.take(batches.weight, batches.ids[i], axis=0, out=out, mode="clip")),
    }
    return Contest(batches.number, batches.read(batches.lookups), _our_gather(batches), peers)


def fused_update(size: Size, stream: str) -> Contest:
    """Against the limit: the peer is a copy of the bytes that must move, which `measure` knows the time of."""
    batches = Batches(size, stream)
    rule = RULES["SparseAdam"][0]
    table = batches.table(rule)
    ours = Entry(lambda i: table.update(batches.ids[i], batches.grads[i]), lambda _: table.weight)
    return Contest(batches.number, batches.updated(batches.lookups, rule), ours, {})


def flat_update(size: Size, stream: str) -> Contest:
    """A large table against a small one: as many ids, all distinct, other rows each time."""
    large, small, lookups = size.flat
    number = max(4 * size.batches, 2)
    rng = np.random.default_rng(2021)
    grads = [rng.standard_normal((lookups, size.dim), np.float32) for _ in range(number)]
    rule = RULES["SparseAdam"][0]

    def entry(num_rows: int) -> Entry:
        weight = se.initializers.zeros((num_rows, size.dim))
        table = se.EmbeddingTable.from_array(weight, optimizer=rule)
        ids = [streams.make(stream, num_rows, lookups, rng) for _ in range(number)]
        table.update(ids[0], grads[0])
        first = weight[ids[0]].copy()  # equal: both tables were fresh
        return Entry(lambda i: table.update(ids[i], grads[i]), lambda _: first)

    moved = lookups * (8 + 7 * 4 * size.dim)
    return Contest(number, moved, entry(large), {f"itself, {small:,} rows": entry(small)})
