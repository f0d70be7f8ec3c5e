"""What all loops of the recommender share: ratings, batches, initial weights, the score, the plot.

A rating is predicted from two looked-up rows, x of its user and y of its item::

    tanh([x, y] @ w1 + b1) @ w2 + b2 + x . y

tanh, and not a function with a kink: a rounding difference at a kink would become another gradient.
The tables learn with `sparsembed.Adagrad`, the dense part with the momentum that all frameworks write alike.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[1]))
from which_adam import read_ratings

import sparsembed as se

DIM, HIDDEN, BATCH, HELD_OUT = 16, 32, 512, 0.1
TABLE_LR, DENSE_LR, MOMENTUM = 0.05, 0.02, 0.9
STEPS = 700


def batches(steps):
    """Return (name of the ratings, rows of both tables, batches, ratings held out)."""
    name, users, items, ratings = read_ratings(os.environ.get("SPARSEMBED_DATA"))
    rng = np.random.default_rng(0)
    held, kept = np.split(rng.permutation(len(ratings)), [int(HELD_OUT * len(ratings))])
    passes = -(-steps * BATCH // len(kept))
    order = np.concatenate([rng.permutation(kept) for _ in range(passes)])[: steps * BATCH]
    columns = (users.astype(np.int64), items.astype(np.int64), ratings.astype(np.float32))
    found = [tuple(column[at] for column in columns) for at in order.reshape(steps, BATCH)]
    sizes = (int(users.max()) + 1, int(items.max()) + 1)
    return name, sizes, found, tuple(column[held] for column in columns)


def new_tables(sizes, dtype=np.float32):
    """Make the tables of users and items."""
    rng = np.random.default_rng(1)
    weights = [0.1 * rng.standard_normal((size, DIM)).astype(np.float32) for size in sizes]
    return [se.EmbeddingTable.from_array(w.astype(dtype), se.Adagrad(lr=TABLE_LR)) for w in weights]


def new_dense(mean_rating):
    """Make the weights of the dense part: w1, b1, w2, b2."""
    rng = np.random.default_rng(2)
    shapes = ((2 * DIM, HIDDEN), (HIDDEN,), (HIDDEN, 1), (1,))
    w1, b1, w2, b2 = (rng.standard_normal(shape).astype(np.float32) / np.float32(shape[0] ** 0.5) for shape in shapes)
    return [w1, 0 * b1, w2, 0 * b2 + np.float32(mean_rating)]


def held_out_error(tables, dense, held):
    """Return the root mean squared error on ratings held out."""
    users, items, ratings = held
    x, y = tables[0].lookup(users), tables[1].lookup(items)
    w1, b1, w2, b2 = dense
    predicted = (np.tanh(np.concatenate([x, y], axis=1) @ w1 + b1) @ w2)[:, 0] + b2 + (x * y).sum(axis=1)
    return float(np.sqrt(np.mean((predicted - ratings) ** 2)))


def tolerance(steps):
    """Return how far, relatively, rounding may take the loss of a float32 loop from that of another.

    A prediction sums 2 * DIM + HIDDEN products, and each step rounds every weight once, by up to 2**-24.  Roundings
    are as good as independent, so that n of them add up to sqrt(n) (https://doi.org/10.1137/18M1226312); twice that,
    as the loss is a square.
    """
    return (steps + 2 * DIM + HIDDEN) ** 0.5 * 2.0**-23


def main(train, dtype=np.float32, argv=None):
    """Run one loop, ``train(tables, dense, batches) -> losses, dense``, from the command line."""
    parser = argparse.ArgumentParser(description="Train the recommender in one framework.")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"steps of {BATCH} ratings ({STEPS})")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the losses to this JSON file")
    args = parser.parse_args(argv)
    if not 1 <= args.steps <= 100_000:
        parser.error("--steps must be from 1 to 100,000")
    name, sizes, steps, held = batches(args.steps)
    tables, dense = new_tables(sizes, dtype), new_dense(steps[0][2].mean())
    start = time.perf_counter()
    losses, dense = train(tables, dense, steps)
    seconds = time.perf_counter() - start
    error = held_out_error(tables, dense, held)
    result = {"ratings": name, "rows": sum(sizes), "seconds": seconds, "held_out": error, "losses": losses}
    if args.save:
        args.save.write_text(json.dumps(result) + "\n")
    print(f"{name}: loss {losses[0]:.4f} -> {losses[-1]:.4f}, error held out {error:.4f} stars, {seconds:.1f} s")


def draw(path, curves, name, allowed, block=20):
    """Plot loss curves on top of each other, and their deviations from the first of them below, by blocks of steps."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        print("The plot is skipped, for want of matplotlib: pip install sparsembed[examples]")
        return
    figure, (top, bottom) = plt.subplots(2, figsize=(9, 8), sharex=True, layout="constrained", height_ratios=(3, 2))
    exact, *others = curves
    losses = {label: np.array(each) for label, each in curves.items()}
    starts = np.arange(0, len(losses[exact]), block)
    middles = np.minimum(starts + block / 2, len(losses[exact]))
    counts = np.diff([*starts, len(losses[exact])])
    # From wide to narrow, the narrow ones dashed: all can be seen where they are one curve.
    styles = ((13, "-"), (9, "-"), (6, "-"), (3.5, "-"), (3.5, (0, (1.5, 1.5))), (1, "-"))
    colours = ("0.8", "tab:orange", "tab:green", "navy", "yellow", "tab:red")
    for (label, each), (width, dashes), colour in zip(losses.items(), styles, colours, strict=False):
        mean = np.add.reduceat(each, starts) / counts
        top.plot(middles, mean, linestyle=dashes, linewidth=width, color=colour, label=label)
    for label, colour, marker in zip(others, (*colours[1:4], "goldenrod", "tab:red"), "osD^v", strict=False):
        most = np.maximum.reduceat(np.abs(losses[label] / losses[exact] - 1), starts)
        bottom.semilogy(middles, most, marker=marker, markersize=4, linewidth=0.8, color=colour, label=label)
    bottom.axhline(allowed, color="black", linestyle="--", label=f"tolerance {allowed:.1e}")
    top.set(title=f"One recommender, the same batches, every framework ({name})")
    top.set(ylabel=f"training loss, mean of {block} steps (stars²)")
    bottom.set(ylabel=f"largest relative deviation from\nfloat64 in {block} steps", xlabel=f"step (of {BATCH} ratings)")
    bottom.set(ylim=(3e-8, 20 * allowed))
    top.legend(fontsize=9, handlelength=4)
    bottom.legend(ncols=3, fontsize=9, loc="upper center")
    for axes in (top, bottom):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
