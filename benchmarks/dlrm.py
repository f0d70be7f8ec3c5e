"""A DLRM-like model in torch, with torch's tables and with ours: ``python -m benchmarks.dlrm [--quick] [--json FILE]``

Ten embedding bags, a bottom and a top MLP, and the dot products between them.  The models start from the same seed
and see the same batches; their losses are compared before anything is timed.  Then the training steps of two take
turns in one process; ratios are medians over the pairs.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import sparsembed as se
import sparsembed.torch as st

from . import ids as streams
from . import timing
from .readme import TIMES
from .timing import Effort, quartiles

LEAST = 3.0  # times the steps per second of torch's tables
RATE = 1e-3


class Size(NamedTuple):
    """How much is trained and measured."""

    tables: int = 10
    num_rows: int = 100_000
    dim: int = 64
    batch: int = 2_048
    bag: int = 4  # ids of a sample in each table
    dense: int = 13  # numbers of a sample
    hidden: int = 64
    batches: int = 8  # different ones, in turn
    compared: int = 24  # steps whose losses are compared
    effort: Effort = Effort(21, 6.0, 60.0)


FULL = Size()
QUICK = FULL._replace(num_rows=20_000, batch=512, effort=Effort(7, 1.0, 5.0))
TINY = Size(2, 300, 8, 16, 3, 5, 8, 2, 6, Effort(1, 0.0, 0.0))
STREAMS = ("uniform", "production")


class Batch(NamedTuple):
    dense: Any  # (batch, dense)
    ids: list[Any]  # of each table (batch * bag,)
    offsets: Any  # (batch,)
    clicked: Any  # (batch,)


class Model(torch.nn.Module):
    """Bags and an MLP for the dense numbers, dot products of all pairs, an MLP on top."""

    def __init__(self, size: Size, make_bag: Callable[[], Any]) -> None:
        super().__init__()
        n, linear = size.tables + 1, torch.nn.Linear
        self.bags = torch.nn.ModuleList(make_bag() for _ in range(size.tables))
        self.bottom = torch.nn.Sequential(
            linear(size.dense, size.hidden), torch.nn.ReLU(), linear(size.hidden, size.dim), torch.nn.ReLU()
        )
        self.top = torch.nn.Sequential(linear(size.dim + n * n, size.hidden), torch.nn.ReLU(), linear(size.hidden, 1))

    def forward(self, dense: Any, pooled: list[Any]) -> Any:
        below = self.bottom(dense)
        vectors = torch.stack([below, *pooled], 1)
        dots = torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1)  # choosing half of them costs more than all
        return self.top(torch.cat([below, dots], 1)).squeeze(1)


class Training:
    """A model, its optimizers, and one training step."""

    def __init__(self, size: Size, batches: list[Batch], kind: str) -> None:
        self.batches, self.kind = batches, kind
        shape = (size.num_rows, size.dim)
        makers: dict[str, Callable[[], Any]] = {
            "torch": lambda: torch.nn.EmbeddingBag(*shape, mode="sum", sparse=True),
            "unfused": lambda: st.EmbeddingBag(*shape, mode="sum"),
            "fused": lambda: st.EmbeddingBag(*shape, mode="sum", optimizer=se.SparseAdam(lr=RATE), fused=True),
            "dense part": torch.nn.Identity,
        }
        torch.manual_seed(2021)
        self.model = Model(size, makers[kind])
        tables = list(self.model.bags.parameters())
        if kind != "dense part":
            with torch.no_grad():
                for each in tables:
                    each.mul_(0.05)
        self.optimizers: list[Any] = []
        if kind == "torch":
            self.optimizers.append(torch.optim.SparseAdam(tables, lr=RATE))
        if kind == "unfused":
            self.optimizers.append(st.Optimizer(tables, se.SparseAdam(lr=RATE)))
        mlps = [*self.model.bottom.parameters(), *self.model.top.parameters()]
        self.optimizers.append(torch.optim.Adam(mlps, lr=RATE))
        self.constant = [torch.randn(size.batch, size.dim).requires_grad_() for _ in range(size.tables)]

    def pooled(self, batch: Batch) -> list[Any]:
        """Return the pooled rows of each table."""
        if self.kind == "dense part":
            for each in self.constant:
                each.grad = None
            return self.constant
        return [bag(ids, batch.offsets) for bag, ids in zip(self.model.bags, batch.ids, strict=True)]

    def loss(self, i: int) -> Any:
        batch = self.batches[i % len(self.batches)]
        scores = self.model(batch.dense, self.pooled(batch))
        return torch.nn.functional.binary_cross_entropy_with_logits(scores, batch.clicked)

    def step(self, i: int) -> Any:
        loss = self.loss(i)
        for each in self.optimizers:
            each.zero_grad()
        loss.backward()
        for each in self.optimizers:
            each.step()
        return loss.detach()


def make_batches(size: Size, stream: str) -> list[Batch]:
    """The same for every model."""
    rng = np.random.default_rng(2021)
    offsets = torch.arange(0, size.batch * size.bag, size.bag)
    result = []
    for _ in range(size.batches):
        ids = [streams.make(stream, size.num_rows, size.batch * size.bag, rng) for _ in range(size.tables)]
        dense = torch.from_numpy(rng.standard_normal((size.batch, size.dense), np.float32))
        clicked = torch.from_numpy((rng.random(size.batch) < 0.25).astype(np.float32))
        result.append(Batch(dense, [*map(torch.from_numpy, ids)], offsets, clicked))
    return result


def compare(trainings: dict[str, Training], steps: int) -> dict[str, list[float]]:
    """Train all models for some steps, which also compiles and touches memory; their losses must agree.

    Sums of gradients and dot products run in another order: 2e-4 is 4 digits of what float32 has after that many
    steps, and a table that missed one step is off by more.
    """
    losses = {name: [float(each.step(i)) for i in range(steps)] for name, each in trainings.items()}
    for name, each in losses.items():
        np.testing.assert_allclose(each, losses["torch"], rtol=2e-4, err_msg=name)
    return losses


def compete(size: Size, stream: str) -> list[dict[str, Any]]:
    """Measure both modes against torch's tables, and the dense part alone."""
    batches = make_batches(size, stream)
    trainings = {kind: Training(size, batches, kind) for kind in ("torch", "unfused", "fused")}
    losses = compare(trainings, size.compared)
    dense, peer = Training(size, batches, "dense part"), trainings["torch"]
    for i in range(size.batches):
        dense.step(i)
    rows = []
    for kind in ("unfused", "fused"):
        pairs = timing.paired(trainings[kind].step, peer.step, size.batches, size.effort)
        alone = timing.paired(dense.step, trainings[kind].step, size.batches, size.effort)
        ratio = quartiles([b / a for a, b in zip(pairs.ours, pairs.peer, strict=True)])
        rows.append(
            {
                "kind": kind,
                "ids": stream,
                "pairs": len(pairs.ours),
                "undisturbed": pairs.undisturbed and alone.undisturbed,
                "ours_ms": [1e3 * each for each in quartiles(pairs.ours)],
                "peer_ms": [1e3 * each for each in quartiles(pairs.peer)],
                "dense_ms": [1e3 * each for each in quartiles(alone.ours)],
                "ratio": list(ratio),
                "least": LEAST,
                "losses": {name: [each[0], each[-1]] for name, each in losses.items()},
            }
        )
    return rows


def measure(size: Size, threads: int, log: Any = sys.stderr) -> dict[str, Any]:
    """Measure the whole table."""
    timing.set_threads(threads)
    rows = []
    for stream in STREAMS:
        rows += compete(size, stream)
        print("\n".join(map(line, rows[-2:])), file=log, flush=True)
    sizes = size._asdict() | {"effort": size.effort._asdict()}
    return {"machine": timing.machine(), "size": sizes, "rows": rows}


def line(row: dict[str, Any]) -> str:
    """One line of the Markdown table."""
    low, ratio, high = row["ratio"]
    ours, peer, dense = (row[name][1] for name in ("ours_ms", "peer_ms", "dense_ms"))
    met = "yes" if ratio >= row["least"] else "**no**"
    cells = (
        f"`sparsembed.torch.EmbeddingBag`, {row['kind']}",
        row["ids"],
        f"{1e3 / ours:.0f}",
        f"{1e3 / peer:.0f}",
        f"{ratio:.2f}{TIMES} ({low:.2f} to {high:.2f})",
        f"{met}: at least {row['least']:.0f}{TIMES}",
        f"{100 * dense / ours:.0f} %",
        f"{100 * dense / peer:.0f} %",
    )
    return "| " + " | ".join(cells) + " |"


HEADER = (
    "| tables | ids | steps/s | torch's, steps/s | ratio (quartiles) | target met? | dense part, ours | torch |\n"
    "|---|---|--:|--:|--:|---|--:|--:|"
)


def markdown(result: dict[str, Any]) -> str:
    """The table and what it was measured on."""
    machine, size = result["machine"], result["size"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    first, last = zip(*itertools.chain(*(each["losses"].values() for each in result["rows"])), strict=True)
    notes = [
        f"Measured {machine['date']} on {machine['processor']}, {machine['cores']} cores, {machine['threads']} thread"
        f"{'s' * (machine['threads'] != 1)}"
        f", {machine['system']}, Python {machine['python']}, {versions}. {size['tables']} tables of "
        f"{size['num_rows']:,} rows {TIMES} {size['dim']} float32, {size['batch']:,} samples with {size['bag']} ids in "
        f"each table{', in CPU time' * size['effort']['cpu_time']}; peer: "
        "`torch.nn.EmbeddingBag(sparse=True)` and `torch.optim.SparseAdam`; Adam for all MLPs. "
        "Dense part: the share of a step that the model takes without tables.",
        "",
        f"Losses of all models, from {max(first):.4f} to {min(last):.4f} over {size['compared']} steps, agree to 2e-4.",
    ]
    if not all(each["undisturbed"] for each in result["rows"]):
        notes += ["", 'Other programs took the cores during some lines ("undisturbed": false): measure again.']
    return "\n".join([HEADER, *map(line, result["rows"]), "", *notes])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dlrm", description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="smaller and fewer repeats")
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.add_argument("--threads", type=int, default=timing.THREADS)
    parser.add_argument("--cpu-time", action="store_true", help="one thread by its CPU time: for a busy machine")
    parser.add_argument("--patience", type=float, metavar="SECONDS", help="wait for a quiet machine, each line (60)")
    options = parser.parse_args(arguments)
    size = TINY if options.tiny else QUICK if options.quick else FULL
    patience = size.effort.patience if options.patience is None else options.patience
    size = size._replace(effort=size.effort._replace(cpu_time=options.cpu_time, patience=patience))
    result = measure(size, 1 if options.cpu_time else options.threads)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(markdown(result))


if __name__ == "__main__":
    main()
