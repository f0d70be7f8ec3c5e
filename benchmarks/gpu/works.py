"""The work that is measured, with the least bytes that it must move and the peers that do it, too."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import sparsembed as se

from .. import ids as streams
from . import peers
from .device import BATCHES, Device, Step
from .inputs import RULES
from .peers import Given, Maker

HOTNESS = 32  # ids in a bag
AT_LEAST = 512 << 20  # bytes of gradients in turn: several times the cache
FEW = (se.SGD, se.RowwiseAdagrad, se.Adagrad, se.SparseAdam, se.Adam)  # measured at every dim, the others at 128
MAIN = 128
TABLES = 7  # side by side: weights and two slots of ours; weights, gradient and two moments of torch's dense Adam
ADAM = se.SparseAdam(0.1)


class Size(NamedTuple):
    """How much to measure."""

    rows: int = 10_000_000
    ids: int = 1_000_000
    dims: tuple[int, ...] = (16, 32, 64, 128, 256)
    table: int = 4 << 30  # bytes that a table takes at least: of short rows there are more than `rows`


class Work(NamedTuple):
    """A thing to measure, with all that it needs."""

    moved: int  # bytes, at least
    step: Step
    given: Given
    peers: dict[str, Maker] = {}


def read_bytes(n: int, dim: int) -> int:
    """A lookup: a row read and written, and an id of 8 bytes."""
    return n * (8 * dim + 8)


def pool_bytes(n: int, dim: int) -> int:
    """A row and an id for each id, a row and an offset for each bag."""
    return n * (4 * dim + 8) + n // HOTNESS * (4 * dim + 8)


def update_bytes(n: int, unique: int, dim: int, rule: Any) -> int:
    """The gradients, ids and their sort; weights and state of each row read and written."""
    row_state = 64 if rule.row_slots else 0  # a number costs a sector of 32 bytes, twice
    return n * (4 * dim + 28) + unique * (8 * dim * (1 + len(rule.slots)) + row_state)


def rows_that_fit(free: int, size: Size, dim: int) -> int:
    """Rows of a table, so that all that is measured side by side has room in `free` bytes."""
    tables = TABLES if dim == MAIN else 3
    other = BATCHES * 16 * ids_of(size, dim) + 8 * max(AT_LEAST, 4 * dim * size.ids)  # ids, gradients, sums, results
    fit = (int(0.85 * free) - other) // (4 * dim * tables)
    if fit < size.ids:
        raise MemoryError(f"{free / 1e9:.1f} GB are free, too few for dim {dim} and {size.ids:,} ids; pass fewer --ids")
    return min(max(size.rows, -(-size.table // (4 * dim))), fit)


def ids_of(size: Size, dim: int) -> int:
    """How many ids to look up: more of short rows, so that a call takes longer than its launch."""
    return size.ids * max(1, MAIN // dim) // HOTNESS * HOTNESS


# ------------------------------------------------------------------------------------------ lookups


def lookups(device: Device, rows: int, dim: int, n: int) -> Given:
    """A table, and ids anywhere in it."""
    rng = np.random.default_rng(dim)
    ids = [device.up(rng.integers(0, rows, n)) for _ in range(BATCHES)]
    return Given(rows, dim, ids, [], device.noise((rows, dim)), device.up(np.arange(0, n + 1, HOTNESS)))


def gather(device: Device, given: Given) -> Work:
    n, dim = len(given.ids[0]), given.dim
    out = device.noise((n, dim))
    others: dict[str, Maker] = {"torch embedding": peers.embedding, "cupy take": peers.cupy_take}
    return Work(read_bytes(n, dim), lambda i: se.gather(given.weight, given.ids[i], out), given, others)


def pool(device: Device, given: Given, mode: str) -> Work:
    n, dim = len(given.ids[0]), given.dim
    out, bags = device.noise((n // HOTNESS, dim)), [se.Bags(each, given.offsets) for each in given.ids]
    others: dict[str, Maker] = {"torch embedding_bag": peers.embedding_bag} if mode == "sum" else {}
    return Work(pool_bytes(n, dim), lambda i: se.pool(given.weight, bags[i], mode, out), given, others)


# ------------------------------------------------------------------------------------------ training


def gradients(device: Device, rows: int, dim: int, n: int, stream: str) -> Given:
    """Gradients of ids from one of the streams of `benchmarks.ids`, enough that the cache does not hold them."""
    rng = np.random.default_rng(dim)
    turns = max(1, min(BATCHES, -(-AT_LEAST // (4 * dim * n))))
    ids = [device.up(streams.make(stream, rows, n, rng)) for _ in range(BATCHES)]
    offsets, pooled = device.up(np.arange(0, n + 1, HOTNESS)), device.noise((n // HOTNESS, dim))
    return Given(rows, dim, ids, [device.noise((n, dim)) for _ in range(turns)], None, offsets, pooled)


def unique_ids(device: Device, given: Given) -> int:
    """Different rows of a batch."""
    return int(np.mean([len(np.unique(device.down(each))) for each in given.ids]))


def peers_of(rule: Any) -> dict[str, Maker]:
    name = type(rule).__name__
    if name == "SparseAdam":
        return {"torch SparseAdam": peers.sparse_step(name), "torch dense Adam": peers.dense_adam}
    if name == "Adam":
        return {"torch dense Adam": peers.dense_adam}
    if name in ("Adagrad", "SGD"):
        return {f"torch {name}, sparse": peers.sparse_step(name)}
    return {}


def update(device: Device, given: Given, rule: Any) -> Work:
    table = se.EmbeddingTable.from_array(device.noise((given.rows, given.dim)), rule)
    moved = update_bytes(len(given.ids[0]), unique_ids(device, given), given.dim, rule)
    others = peers_of(rule) if given.dim == MAIN else {}
    return Work(moved, lambda i: table.update(given.ids[i], given.grads[i % len(given.grads)]), given, others)


def coalesce(device: Device, given: Given) -> Work:
    moved = update_bytes(len(given.ids[0]), 0, given.dim, ADAM) + unique_ids(device, given) * 4 * given.dim
    others: dict[str, Maker] = {
        "torch sparse coalesce": peers.sparse_coalesce,
        "torch dense backward": peers.dense_backward,
    }

    def step(i: int) -> None:
        se.coalesce(given.ids[i], given.grads[i % len(given.grads)], given.rows)

    return Work(moved, step, given, others)


def scatter_add(device: Device, given: Given) -> Work:
    weight = device.noise((given.rows, given.dim))
    moved = update_bytes(len(given.ids[0]), unique_ids(device, given), given.dim, se.SGD(0.1))
    others: dict[str, Maker] = {"torch index_add_": peers.index_add, "cupy scatter_add": peers.cupy_scatter_add}

    def step(i: int) -> None:
        se.scatter_add(weight, given.ids[i], given.grads[i % len(given.grads)], -0.1)

    return Work(moved, step, given._replace(weight=weight), others)


def pooled(device: Device, given: Given) -> Work:
    """Pool and train, as a model with an EmbeddingBag does."""
    n, dim, unique = len(given.ids[0]), given.dim, unique_ids(device, given)
    table = se.EmbeddingTable.from_array(device.noise((given.rows, dim)), ADAM)
    bags = [se.Bags(each, given.offsets) for each in given.ids]
    moved = pool_bytes(n, dim) + n * 28 + n // HOTNESS * 4 * dim + update_bytes(0, unique, dim, ADAM)

    def step(i: int) -> None:
        table.pool(bags[i])
        table.update_pooled(bags[i], given.pooled)

    others = {
        "torch EmbeddingBag, SparseAdam": peers.bag_training(sparse=True),
        "torch EmbeddingBag, dense Adam": peers.bag_training(sparse=False),
    }
    return Work(moved, step, given, others)


def _refuse(error: Exception) -> Work:
    raise error


def works(device: Device, size: Size) -> Iterator[tuple[Callable[[], Work], dict[str, Any]]]:
    """Everything, one thing at a time: what makes a work, and what it is called."""
    for dim in size.dims:
        n = ids_of(size, dim)
        try:
            rows = rows_that_fit(device.free(), size, dim)
        except MemoryError as error:  # another dim may fit
            yield partial(_refuse, error), {"work": "everything", "dim": dim, "rows": 0, "ids": n}
            continue
        where = {"dim": dim, "rows": rows, "ids": n}
        given = lookups(device, rows, dim, n)
        yield partial(gather, device, given), {"work": "gather"} | where
        for mode in ("sum", "max") if dim == MAIN else ("sum",):
            yield partial(pool, device, given, mode), {"work": f"pool {mode}"} | where
        del given
        where["ids"] = n = min(size.ids, rows) // HOTNESS * HOTNESS
        given = gradients(device, rows, dim, n, "distinct")
        for rule in RULES if dim == MAIN else [each(0.1) for each in FEW]:
            yield partial(update, device, given, rule), {"work": f"update, {type(rule).__name__}"} | where
        if dim == MAIN:
            yield partial(coalesce, device, given), {"work": "coalesce"} | where
            yield partial(scatter_add, device, given), {"work": "scatter_add"} | where
            del given
            given = gradients(device, rows, dim, n, "production")
            name = "SparseAdam, production ids"
            yield partial(update, device, given, ADAM), {"work": f"update, {name}"} | where
            yield partial(pooled, device, given), {"work": f"pool and update_pooled, {name}"} | where
        del given
