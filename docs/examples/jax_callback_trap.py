"""
The trap of callbacks inside jit
================================

A table can be hidden inside ``jax.jit``: ``io_callback`` looks rows up, and a ``custom_vjp`` whose backward rule
calls back updates them.  JAX runs a backward rule only where something that is differentiated depends on it.  Ids
are integers, which nobody differentiates, so the rule needs a float argument for no other purpose (a token).
Without one the rule never runs, and nothing says so: the dense weights still learn, so the loss still falls.

This program trains one small model three ways, with the same batches, and writes steps, losses and times to
``jax_callback_trap.json``. ::

    pip install sparsembed jax
    python jax_callback_trap.py                             # half a minute
"""

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

import sparsembed as se

ROWS, LR = 10_000, 0.1
WAYS = ("rows in, gradients out", "callbacks, token differentiated", "callbacks, nothing differentiated")


def loss_of(rows, dense, target):
    """Return the mean squared error of a small model."""
    return jnp.mean((jnp.tanh(rows) @ dense[:-1] + dense[-1] - target) ** 2)


def outside(table):
    """Return a step that looks up and updates outside of jit."""

    @jax.jit
    def model(rows, dense, target):
        loss, (grad_rows, grad) = jax.value_and_grad(loss_of, argnums=(0, 1))(rows, dense, target)
        return loss, grad_rows, dense - LR * grad

    def step(ids, dense, target):
        loss, grad_rows, dense = model(table.lookup(ids), dense, target)
        table.update(ids, grad_rows)
        return loss, dense

    return step


def inside(table, token_too):
    """Return a step that hides lookup and update in callbacks inside jit."""

    @jax.custom_vjp
    def lookup(ids, token):
        shape = jax.ShapeDtypeStruct((*ids.shape, table.dim), jnp.float32)
        return io_callback(lambda ids: table.lookup(np.asarray(ids)), shape, ids, ordered=True)

    def forward(ids, token):
        return lookup(ids, token), ids

    def backward(ids, grad_rows):
        io_callback(lambda *both: table.update(*map(np.asarray, both)), None, ids, grad_rows, ordered=True)
        return np.zeros(ids.shape, jax.dtypes.float0), jnp.zeros(())

    lookup.defvjp(forward, backward)

    @jax.jit
    def step(ids, dense, target):
        def loss(dense, token):
            return loss_of(lookup(ids, token), dense, target)

        what = (0, 1) if token_too else (0,)
        loss, grads = jax.value_and_grad(loss, argnums=what)(dense, jnp.zeros(()))
        return loss, dense - LR * grads[0]

    return step


def train(way, dim, batches, targets, warm):
    """Train one way; return losses, the table's steps, how far it moved, and the median seconds of a step."""
    table = se.EmbeddingTable(ROWS, dim, optimizer=se.Adagrad(lr=LR), rng=0)
    start = table.weight.copy()
    step = outside(table) if way == WAYS[0] else inside(table, token_too=way == WAYS[1])
    dense, losses, seconds = jnp.full(dim + 1, 0.1, jnp.float32), [], []
    for ids, target in zip(batches, targets, strict=True):
        began = time.perf_counter()
        loss, dense = step(ids, dense, target)
        losses.append(float(loss))
        jax.effects_barrier()  # callbacks may still be running
        seconds.append(time.perf_counter() - began)
    moved = float(np.abs(table.weight - start).max())
    return losses, table.step, moved, statistics.median(seconds[warm:])


def measure(size, dim, steps, rounds):
    """Train each way in turn, `rounds` times; times are medians over the rounds."""
    rng = np.random.default_rng(0)
    batches = rng.integers(0, ROWS // 10, (steps, size), dtype=np.int32)
    targets = (rng.standard_normal(ROWS)[batches] + 1).astype(np.float32)
    found = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way in WAYS:
            found[way].append(train(way, dim, batches, targets, warm=steps // 4))
    result = {"ids": size, "dim": dim, "steps": steps, "rounds": rounds, "ways": {}}
    for way, runs in found.items():
        losses, done, moved, _ = runs[0]
        result["ways"][way] = {
            "updates": done,
            "moved": moved,
            "first_loss": losses[0],
            "last_loss": statistics.mean(losses[-5:]),
            "microseconds": round(1e6 * statistics.median(run[-1] for run in runs), 1),
        }
    baseline = result["ways"][WAYS[0]]["microseconds"]
    for way in WAYS:
        result["ways"][way]["cost"] = round(result["ways"][way]["microseconds"] / baseline, 2)
    return result


def table(results):
    """Return the results as lines of Markdown."""
    lines = [
        "| ids x dim | way | updates | first loss | last loss | µs a step | cost |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for each in results:
        for way, row in each["ways"].items():
            cells = [f"{each['ids']:,} x {each['dim']}", way, str(row["updates"])]
            cells += [f"{row['first_loss']:.3f}", f"{row['last_loss']:.3f}", f"{row['microseconds']:.0f}"]
            lines.append(f"| {' | '.join(cells)} | {row['cost']:.1f} |")
    return lines


def main(argv=None):
    """Measure, write, show."""
    parser = argparse.ArgumentParser(description="Measure the trap of callbacks inside jit.")
    parser.add_argument("--steps", type=int, default=400, help="steps of each run (400)")
    parser.add_argument("--rounds", type=int, default=7, help="times that each way is run (7)")
    parser.add_argument("--out", type=Path, default=Path("out"), metavar="DIR", help="where results go (out)")
    args = parser.parse_args(argv)
    if args.steps < 10 or args.rounds < 1:
        parser.error("--steps must be at least 10, --rounds at least 1")
    results = [measure(size, dim, args.steps, args.rounds) for size, dim in ((64, 8), (4096, 64))]
    machine = {"jax": jax.__version__, "python": platform.python_version(), "cores": os.cpu_count()}
    args.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"machine": machine, "results": results}, indent=1)
    (args.out / "jax_callback_trap.json").write_text(text + "\n")
    print("\n".join(table(results)))


if __name__ == "__main__":
    main()
