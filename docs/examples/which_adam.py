"""
Which Adam?
===========

People tune Adam on dense gradients, where every row of an embedding table moves at every step: the moments
of a row without a gradient fade, and the row moves on while they do.  ``SparseAdam`` (torch's, and the
lazy Adam of most engines) freezes such rows instead.  That is another optimizer.  ``Adam`` of sparsembed
touches only the rows of the batch, too, but reads each row as the dense optimizer would have left it.

This program factorises ratings three times, with the same batches: with both, and with dense Adam in
float64.  It plots how far the tables of the first two are from those of the third, relative to how far
those have moved, and the error on ratings held out. ::

    pip install sparsembed[examples]
    python which_adam.py                                    # ratings that it makes up
    SPARSEMBED_DATA=folder python which_adam.py             # folder/ml-latest-small-ratings.csv, if it is there

The file is MovieLens' ratings.csv (https://grouplens.org/datasets/movielens/latest/, "small").
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import numpy as np

import sparsembed as se

DIM, BATCH, HELD_OUT = 16, 256, 0.1
LR, PENALTY = 3e-3, 0.02  # the penalty pulls the vectors of a batch towards zero
FILE = "ml-latest-small-ratings.csv"


def read_ratings(folder):
    """Return (name, users, items, ratings); ids are consecutive numbers."""
    path = Path(folder or ".") / FILE
    if folder and path.exists():
        users, items, ratings = np.loadtxt(path, delimiter=",", skiprows=1, usecols=(0, 1, 2)).T
        return (
            "MovieLens",
            np.unique(users, return_inverse=True)[1],
            np.unique(items, return_inverse=True)[1],
            ratings,
        )
    if folder:
        print(f"{path} is not there; the ratings are made up", file=sys.stderr)
    rng = np.random.default_rng(0)
    users = rng.integers(0, 700, 100_000)
    items = np.minimum(rng.zipf(1.2, 100_000), 9_000) - 1
    tastes, kinds = rng.standard_normal((700, 4)), rng.standard_normal((9_000, 4))
    ratings = 3.5 + 0.5 * np.einsum("nd,nd->n", tastes[users], kinds[items]) + 0.5 * rng.standard_normal(100_000)
    return "made-up ratings", users, items, np.clip(ratings, 0.5, 5)


class DenseAdam:
    """The dense optimizer in float64, by the formulas of `sparsembed.reference`; the cost follows the table."""

    def __init__(self, start, rule):
        self.weight, self.rule, self.step = start.astype(np.float64), rule, 0
        self.state = {name: np.zeros(start.shape) for name in rule.slots}

    def lookup(self, ids):
        return self.weight[ids]

    def update(self, ids, grad):
        self.step += 1
        self.weight, self.state = se.reference.update(self.rule, self.weight, self.state, ids, grad, self.step)


def train(tables, batches, mean, each_step):
    """Train (users, items) with squared error on the batches; the last column of each is a bias."""
    for step, (users, items, ratings) in enumerate(batches, 1):
        x, y = (table.lookup(ids) for table, ids in zip(tables, (users, items), strict=True))
        error = (x[:, :-1] * y[:, :-1]).sum(axis=1) + x[:, -1] + y[:, -1] + mean - ratings
        scale = 2 / len(ratings)
        for table, ids, own, other in ((tables[0], users, x, y), (tables[1], items, y, x)):
            slope = np.concatenate([other[:, :-1], np.ones((len(ids), 1))], axis=1)
            grad = scale * (error[:, None] * slope + PENALTY * own)
            table.update(ids, grad.astype(own.dtype))
        each_step(step)


def loss(tables, users, items, ratings, mean):
    """Return the root mean squared error."""
    x, y = tables[0].lookup(users), tables[1].lookup(items)
    return float(np.sqrt(np.mean(((x[:, :-1] * y[:, :-1]).sum(axis=1) + x[:, -1] + y[:, -1] + mean - ratings) ** 2)))


def compare(users, items, ratings, epochs):
    """Return steps, the deviation of each optimizer at them, the loss of each after each epoch, and seconds."""
    rng = np.random.default_rng(0)
    order = rng.permutation(len(ratings))
    held, kept = np.split(order, [int(HELD_OUT * len(order))])
    mean, rule = ratings[kept].mean(), se.Adam(lr=LR)
    sizes = (int(users.max()) + 1, int(items.max()) + 1)
    starts = [0.1 * rng.standard_normal((size, DIM + 1)).astype(np.float32) for size in sizes]
    passes = [rng.permutation(kept) for _ in range(epochs)]
    where = [each[i : i + BATCH] for each in passes for i in range(0, len(each), BATCH)]
    batches = [(users[at], items[at], ratings[at]) for at in where]
    per_epoch = len(batches) // epochs
    makers = {
        "dense": lambda start: DenseAdam(start, rule),
        "Adam": lambda start: se.EmbeddingTable.from_array(start, rule, copy=True),
        "SparseAdam": lambda start: se.EmbeddingTable.from_array(start, se.SparseAdam(lr=LR), copy=True),
    }
    seen, result = {}, {"steps": [], "deviation": {}, "rmse": {}, "seconds": {}}
    for name, make in makers.items():
        tables, losses, deviation = [make(start) for start in starts], [], []

        def look(step, name=name, tables=tables, losses=losses, deviation=deviation):
            if step % per_epoch == 0:
                losses.append(loss(tables, users[held], items[held], ratings[held], mean))
            if step % 50 and step > 5:
                return
            now = tables[1].lookup(np.arange(sizes[1]))
            if name == "dense":
                seen[step] = now.copy()
            else:
                moved = np.abs(seen[step] - starts[1]).max()
                deviation.append(float(np.abs(now - seen[step]).max() / moved))

        start = time.perf_counter()
        train(tables, batches, mean, look)
        result["seconds"][name] = round(time.perf_counter() - start, 2)
        result["rmse"][name] = losses
        if name != "dense":
            result["deviation"][name] = deviation
    return result | {"steps": sorted(seen), "batches": len(batches), "rows": sum(sizes)}


def draw(path, name, result):
    """Plot the deviations, and the losses."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        print("The plot is skipped, for want of matplotlib: pip install sparsembed[examples]")
        return
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    colours = {"dense": "black", "Adam": "tab:blue", "SparseAdam": "tab:orange"}
    for label, values in result["deviation"].items():
        left.semilogy(result["steps"], values, label=label, color=colours[label])
    left.set(title=f"Largest deviation from dense Adam ({name})", xlabel="step", ylabel="share of the movement")
    for (label, values), style in zip(result["rmse"].items(), ("-", "--", "-"), strict=True):
        right.plot(range(1, len(values) + 1), values, style, label=label, marker=".", color=colours[label])
    right.set(title="Ratings held out", xlabel="epoch", ylabel="root mean squared error (stars)")
    for axes in (left, right):
        axes.legend()
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def main(argv=None):
    """Train, compare, show."""
    parser = argparse.ArgumentParser(description="Compare Adam and SparseAdam with dense Adam.")
    parser.add_argument("--epochs", type=int, default=10, help="passes over the ratings (10)")
    parser.add_argument("--out", type=Path, default=Path("out"), metavar="DIR", help="where results go (out)")
    args = parser.parse_args(argv)
    if not 1 <= args.epochs <= 1000:
        parser.error("--epochs must be from 1 to 1000")
    name, users, items, ratings = read_ratings(os.environ.get("SPARSEMBED_DATA"))
    result = compare(users, items, ratings, args.epochs) | {"ratings": name}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "which_adam.json").write_text(json.dumps(result) + "\n")
    draw(args.out / "which_adam.png", name, result)
    print(f"{name}: {result['rows']:,} rows, {result['batches']:,} steps of {BATCH} ratings")
    print("| optimizer | deviation at the end | smallest error on ratings held out | after the last epoch |")
    print("|---|--:|--:|--:|")
    for label, losses in result["rmse"].items():
        deviation = f"{result['deviation'][label][-1]:.1e}" if label != "dense" else ""
        print(f"| {label} | {deviation} | {min(losses):.4f} | {losses[-1]:.4f} |")


if __name__ == "__main__":
    main()
