"""A step of `se.Adam`, lookup and update, beside torch's whole dense step: embedding, backward, ``Adam(fused=True)``.

Both compute the same optimizer, so their rows are compared before anything is timed.
"""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

import sparsembed as se

from .. import timing

TARGET = 1.5
ROWS, DIMS, IDS = (1_000, 9_066, 30_000, 100_000), (32, 64, 128), (32, 512, 4_096, 32_768)
_BATCHES, _RATE = 4, 1e-3
_EFFORTS = {
    "full": timing.Effort(15, 1.0, 10.0),
    "quick": timing.Effort(5, 0.2, 1.0),
    "tiny": timing.Effort(1, 0.0, 0.0),
}
NEEDS = ("torch",)


def cells(size: str) -> list[tuple[int, int, int]]:
    """Return rows, dim and ids of each cell."""
    if size == "tiny":
        return [(50, 8, 40)]
    if size == "quick":
        return [(9_066, 32, 512), (9_066, 32, 4_096), (30_000, 64, 4_096), (100_000, 128, 32_768)]
    return list(itertools.product(ROWS, DIMS, IDS))


def steps(rows: int, dim: int, ids: int) -> tuple[Callable[[int], Any], Callable[[int], Any], Callable[[], None]]:
    """Return a step of ours, a step of torch's, and what compares their rows."""
    import torch

    rng = np.random.default_rng(2021)
    weight = rng.standard_normal((rows, dim), np.float32)
    batches = [rng.integers(0, rows, ids) for _ in range(_BATCHES)]
    grads = rng.standard_normal((ids, dim), np.float32)
    table = se.EmbeddingTable.from_array(weight, se.Adam(lr=_RATE), copy=True)
    embedding = torch.nn.Embedding.from_pretrained(torch.from_numpy(weight.copy()), freeze=False)
    optimizer = torch.optim.Adam(embedding.parameters(), lr=_RATE, fused=True)
    tensors, of_grads = [*map(torch.from_numpy, batches)], torch.from_numpy(grads)

    def ours(i: int) -> Any:
        vectors = table.lookup(batches[i])
        table.update(batches[i], grads)
        return vectors

    def torchs(i: int) -> Any:
        optimizer.zero_grad()
        vectors = embedding(tensors[i])
        vectors.backward(of_grads)
        optimizer.step()
        return vectors

    def compare() -> None:
        moved = table.weight - weight
        np.testing.assert_allclose(moved, embedding.weight.detach().numpy() - weight, rtol=1e-3, atol=1e-5)

    return ours, torchs, compare


def measure(size: str, threads: int, log: Callable[[str], None]) -> list[dict[str, Any]]:
    """Measure all cells."""
    timing.set_threads(threads)
    effort = _EFFORTS[size]
    found = []
    for rows, dim, ids in cells(size):
        ours, torchs, compare = steps(rows, dim, ids)
        for i in range(2 * _BATCHES):
            ours(i % _BATCHES)
            torchs(i % _BATCHES)
        compare()
        pairs = timing.paired(ours, torchs, _BATCHES, effort)
        ratio = timing.quartiles([b / a for a, b in zip(pairs.ours, pairs.peer, strict=True)])
        found.append(
            {
                "rows": rows,
                "dim": dim,
                "ids": ids,
                "threads": threads,
                "ours_ms": 1e3 * timing.quartiles(pairs.ours)[1],
                "torch_ms": 1e3 * timing.quartiles(pairs.peer)[1],
                "ratio": list(ratio),
                "target": TARGET,
                "met": ratio[1] >= TARGET,
                "undisturbed": pairs.undisturbed,
            }
        )
        log(f"se.Adam, {rows:,} x {dim}, {ids:,} ids: {ratio[1]:.2f} times torch's dense step")
    return found
