"""
One recommender, every framework
================================

Runs the same recommender in every framework that is installed, each in a process of its own: NumPy, PyTorch, JAX,
and Keras 3 on both.  Checks that the loss curves are one curve, to float32 rounding, and draws them on top of each
other. ::

    pip install sparsembed[examples] torch jax keras        # those that you have
    python compare.py                                       # under a minute, on ratings that it makes up
    SPARSEMBED_DATA=folder python compare.py                # folder/ml-latest-small-ratings.csv, if it is there

The file is MovieLens' ratings.csv (https://grouplens.org/datasets/movielens/latest/, "small").  The yardstick is the
NumPy loop in float64: it says how far float32 takes a loop from exact arithmetic, whatever the framework.
"""

import argparse
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import common
import numpy as np

EXACT = "NumPy in float64"
LOOPS = {  # label -> file and arguments, modules it needs, backend of Keras
    EXACT: (["numpy_loop.py", "--float64"], (), ""),
    "NumPy": (["numpy_loop.py"], (), ""),
    "PyTorch": (["torch_loop.py"], ("torch",), ""),
    "JAX": (["jax_loop.py"], ("jax",), ""),
    "Keras on PyTorch": (["keras_loop.py"], ("keras", "torch"), "torch"),
    "Keras on JAX": (["keras_loop.py"], ("keras", "jax"), "jax"),
}


def installed(label):
    """Whether a loop can run here."""
    return all(importlib.util.find_spec(name) for name in LOOPS[label][1])


def run(label, steps):
    """Run a loop in a fresh process; return what it saved."""
    (file, *arguments), _, backend = LOOPS[label]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        command = [sys.executable, str(Path(__file__).with_name(file)), *arguments]
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | ({"KERAS_BACKEND": backend} if backend else {})
        subprocess.run([*command, "--steps", str(steps), "--save", str(path)], env=environment, check=True)
        return json.loads(path.read_text())


def deviation(losses, others):
    """Return the largest relative difference of two curves."""
    return float(np.abs(np.array(losses) / np.array(others) - 1).max())


def compare(results, steps):
    """Return the table of deviations, and whether all are within the tolerance."""
    curves = {label: result["losses"] for label, result in results.items()}
    rows = {}
    for label, result in results.items():
        row = {"seconds": round(result["seconds"], 2), "held_out": result["held_out"]}
        row |= {"first_loss": result["losses"][0], "last_loss": result["losses"][-1]}
        rows[label] = row | {"deviation": deviation(curves[label], curves[EXACT])}
    pairs = itertools.combinations([label for label in curves if label != EXACT], 2)
    between = max((deviation(curves[a], curves[b]) for a, b in pairs), default=0.0)
    allowed = common.tolerance(steps)
    ok = max(between, *(row["deviation"] for row in rows.values())) <= allowed
    return {"tolerance": allowed, "largest_between_frameworks": between, "loops": rows}, ok


def table(summary):
    """Return the results as lines of Markdown."""
    lines = ["| loop | first loss | last loss | error held out | deviation from float64 |", "|---|--:|--:|--:|--:|"]
    for label, row in summary["loops"].items():
        cells = [f"{row[key]:.6f}" for key in ("first_loss", "last_loss", "held_out")]
        lines.append(f"| {label} | {' | '.join(cells)} | {row['deviation']:.1e} |")
    between, allowed = summary["largest_between_frameworks"], summary["tolerance"]
    return [*lines, "", f"Largest deviation between two float32 loops: {between:.1e}. Tolerance: {allowed:.1e}."]


def main(argv=None):
    """Run, compare, show; the exit status is 1 if curves differ."""
    parser = argparse.ArgumentParser(description="Train one recommender in every framework.")
    parser.add_argument("--steps", type=int, default=common.STEPS, help=f"steps of each loop ({common.STEPS})")
    parser.add_argument("--out", type=Path, default=Path("out"), metavar="DIR", help="where results go (out)")
    args = parser.parse_args(argv)
    results = {}
    for label in LOOPS:
        if installed(label):
            print(f"{label}: ", end="", flush=True)
            results[label] = run(label, args.steps)
        else:
            print(f"{label}: left out, needs {' and '.join(LOOPS[label][1])}")
    found, ok = compare(results, args.steps)
    name = results[EXACT]["ratings"]
    summary = {"ratings": name, "rows": results[EXACT]["rows"], "steps": args.steps, "batch": common.BATCH} | found
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "recommender.json").write_text(json.dumps(summary, indent=1) + "\n")
    curves = {label: result["losses"] for label, result in results.items()}
    common.draw(args.out / "recommender.png", curves, name, found["tolerance"])
    print("\n".join(table(summary)))
    return 0 if ok else 1


if __name__ == "__main__":
    raise SystemExit(main())
