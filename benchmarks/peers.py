"""sparsembed against its peers: ``python -m benchmarks.peers [--quick] [--json FILE] [--threads 2]``

Prints one Markdown table.  Ours and the peer take turns in one process; times and ratios are
medians over the pairs.  Results are compared before anything is timed.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import contests, timing
from .contests import Contest, Entry
from .readme import markdown, row
from .workload import FULL, QUICK, TINY, Size


class Work(NamedTuple):
    """A line of the table; `least` and `aim` bound the ratio from below, or from above if `aim` is the smaller one."""

    name: str
    build: Callable[..., Contest]
    least: float | None = None
    aim: float | None = None
    needs: tuple[str, ...] = ()  # modules
    arguments: dict[str, Any] = {}
    streams: tuple[str, ...] = ("uniform", "production")
    kind: str = "faster"  # or "limit": share of it; "slower": how much


_TORCH, _FBGEMM, _JAX = ("torch",), ("torch", "fbgemm_gpu"), ("jax", "optax")
WORKS = (
    Work("lookup + SparseAdam step", contests.torch_training, 8, 12, _TORCH, {"optimizer": "SparseAdam"}),
    Work("lookup + Adagrad step", contests.torch_training, 6, 10, _TORCH, {"optimizer": "Adagrad"}),
    Work("lookup + rowwise Adagrad step", contests.fbgemm_lookup, 4, 7, _FBGEMM),
    Work("lookup + SGD step", contests.torch_training, 2, 3, _TORCH, {"optimizer": "SGD"}),
    Work("lookup + Adam step, as dense", contests.dense_training, 6, 12, _TORCH, streams=("uniform",)),
    Work("lookup + Adam step, as dense", contests.jax_training, needs=_JAX, streams=("uniform",)),
    Work("the same, four times the rows", contests.dense_training, 20, 40, _TORCH, {"rows": 4}, ("uniform",)),
    Work("lookup + Adam step, as dense", contests.against_sparse_adam, 1.5, 1.2, kind="slower"),
    Work("gather", contests.torch_gather, 1.15, 1.5, _TORCH),
    Work("gather", contests.numpy_gather, 1.15, 1.5),
    Work("gather", contests.jax_gather, needs=_JAX),
    Work("pool sum, 20 ids a bag", contests.torch_pool, 1.0, 1.3, _TORCH),
    Work("pool sum, 20 ids a bag", contests.fbgemm_pool, 1.5, 2.5, _FBGEMM),
    Work("pool sum, 20 ids a bag", contests.scipy_pool),
    Work("scores, 20 ids a vector", contests.torch_dot, needs=_TORCH),
    Work("scores, 20 ids a vector", contests.numpy_dot),
    Work("pool + backward + rowwise Adagrad", contests.fbgemm_pooled, 3, 5, _FBGEMM),
    Work("scatter_add", contests.numpy_scatter_add),
    Work("scatter_add", contests.torch_scatter_add, needs=_TORCH),
    Work("coalesce", contests.scipy_coalesce),
    Work("coalesce", contests.torch_coalesce, needs=_TORCH),
    Work("fused update (SparseAdam)", contests.fused_update, 0.6, 0.8, kind="limit"),
    Work("update of {flat[2]:,} rows of {flat[0]:,}", contests.flat_update, 2, 1.3, (), {}, ("distinct",), "slower"),
    Work("32 ids: lookup + SparseAdam step", contests.torch_training, 2, 5, _TORCH, {"lookups": 32}, ("uniform",)),
)  # fmt: skip


def check(contest: Contest) -> None:
    """Run every batch on every side, which also compiles and touches all memory, and compare."""
    expected = _result(contest.ours, contest.batches)
    for name, entry in (contest.peers | contest.also).items():
        result = _result(entry, contest.batches)
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=contest.atol, err_msg=name)


def _result(entry: Entry, batches: int) -> Any:
    for i in range(batches):
        last = entry.step(i)
    return np.array(entry.result(last))


def compete(work: Work, size: Size, stream: str, bandwidth: float) -> dict[str, Any]:
    """Measure one line of the table."""
    contest = work.build(size, stream, **work.arguments)
    check(contest)
    if not contest.peers:  # the limit is a time without a function
        pairs = timing.paired(contest.ours.step, contest.ours.step, contest.batches, size.effort)
        limit = timing.Paired(pairs.ours, [contest.moved / bandwidth] * len(pairs.ours), pairs.undisturbed)
        return row(work, size, stream, "copy of as many bytes", limit, contest.moved / bandwidth)
    rows = []
    for name, entry in contest.peers.items():
        pairs = timing.paired(contest.ours.step, entry.step, contest.batches, size.effort)
        rows.append(row(work, size, stream, name, pairs, contest.moved / bandwidth))
    return min(rows, key=lambda each: each["peer_ms"][1]) | {"also": rows if len(rows) > 1 else []}


def measure(size: Size, threads: int, works: Iterable[Work] = WORKS, log: Any = sys.stderr) -> dict[str, Any]:
    """Measure the whole table; peers that are not installed are left out and named."""
    timing.set_threads(threads)
    machine = timing.machine()
    copies = timing.copy_bandwidth(size.copy_bytes, size.effort._replace(seconds=min(size.effort.seconds, 1.0)))
    bandwidth = max(copies.values())
    print(f"copy bandwidth {bandwidth / 1e9:.1f} GB/s", {k: round(v / 1e9, 1) for k, v in copies.items()}, file=log)
    rows, missing = [], set()
    for work in works:
        absent = [module for module in work.needs if not timing.installed(module)]
        missing.update(absent)
        for stream in work.streams if not absent else ():
            rows.append(compete(work, size, stream, bandwidth))
            print(markdown_line(rows[-1]), file=log, flush=True)
    return {
        "machine": machine,
        "size": size._asdict() | {"effort": size.effort._asdict()},
        "copy_bytes_per_second": copies,
        "rows": rows,
        "left_out": sorted(missing),
    }


def markdown_line(line: dict[str, Any]) -> str:
    quartiles = ", ".join(f"{each:.2f}" for each in line["ratio"])
    return f"{line['work']} ({line['ids']}) against {line['peer']}: {quartiles}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="smaller and fewer repeats")
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.add_argument("--threads", type=int, default=timing.THREADS)
    parser.add_argument("--only", default="", metavar="TEXT", help="lines whose work or builder contains this")
    parser.add_argument("--cpu-time", action="store_true", help="one thread by its CPU time: for a busy machine")
    parser.add_argument("--patience", type=float, metavar="SECONDS", help="wait for a quiet machine, each line")
    options = parser.parse_args(arguments)
    size = TINY if options.tiny else QUICK if options.quick else FULL
    patience = size.effort.patience if options.patience is None else options.patience
    size = size._replace(effort=size.effort._replace(cpu_time=options.cpu_time, patience=patience))
    works = [work for work in WORKS if options.only in f"{work.name} {work.build.__name__}"]
    if not works:
        parser.error(f"--only {options.only}: no line has this in its work or builder")
    if options.json and not options.json.absolute().parent.is_dir():
        parser.error(f"--json {options.json}: its folder does not exist")
    result = measure(size, 1 if options.cpu_time else options.threads, works)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(markdown(result))


if __name__ == "__main__":
    main()
