"""Where the time of a step goes: ``python -m benchmarks.phases [FILE.md]`` prints a table, or puts it into a file.

Times the functions of the package that make up a step.  The bytes of a phase are the bytes that it must move, each
row counted once.
"""

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sparsembed._cpu import engine, gradients, launch

from . import timing
from .contests import ours
from .readme import rewrite
from .workload import FULL, TINY, Batches, Size

PHASES: dict[str, tuple[tuple[Any, str], ...]] = {  # label -> modules that call them, and functions
    "check ids": ((engine, "check_ids"), (engine, "check_bags")),
    "gather rows": ((engine, "gather"),),
    "pool rows": ((engine, "pool"),),
    "sort ids into segments": ((engine, "sort"), (gradients, "sort")),
    "sum hot rows": ((launch, "_hot"),),
    "sum gradients, run the rule": ((engine, "update"),),
}
INSIDE = {"sum gradients, run the rule": "sum hot rows"}  # a phase that another one contains


@contextlib.contextmanager
def watched(times: dict[str, float]) -> Iterator[None]:
    """Add the seconds spent in each phase to `times`; no call is one compiled call, as with few ids."""
    originals = []
    for name in [name for name in vars(engine) if name.endswith("_few")]:
        originals.append((engine, name, getattr(engine, name)))
        setattr(engine, name, lambda *arguments: None)

    def watch(module: Any, name: str, label: str) -> None:
        original: Callable[..., Any] = getattr(module, name)

        def timed(*arguments: Any, **keywords: Any) -> Any:
            start = time.perf_counter()
            try:
                return original(*arguments, **keywords)
            finally:
                times[label] = times.get(label, 0.0) + time.perf_counter() - start

        originals.append((module, name, original))
        setattr(module, name, timed)

    for label, places in PHASES.items():
        for module, name in places:
            watch(module, name, label)
    try:
        yield
    finally:
        for module, name, original in originals:
            setattr(module, name, original)


def profile(work: str, size: Size, stream: str, rounds: int) -> dict[str, float]:
    """Return the median milliseconds of each phase of a step, and of the whole step."""
    batches = Batches(size, stream, grads=size.lookups // size.bag if work == "pooled_step" else None)
    contest, found = getattr(ours, work)(batches), []
    for i in range(contest.batches):
        contest.ours.step(i)
    for i in range(rounds):
        times: dict[str, float] = {}
        with watched(times):
            start = time.perf_counter()
            contest.ours.step(i % contest.batches)
            times["all"] = time.perf_counter() - start
        for outer, inner in INSIDE.items():
            times[outer] -= times.get(inner, 0.0)
        found.append(times)
    medians = {
        label: 1e3 * statistics.median(each[label] for each in found) for label in [*PHASES, "all"] if label in found[0]
    }
    medians["everything else"] = medians["all"] - sum(medians[label] for label in medians if label != "all")
    return medians | {"limit": contest.moved}


def markdown(size: Size, rounds: int, threads: int) -> str:
    """One column for each step; the last lines compare all of it with a copy of as many bytes."""
    timing.set_threads(threads)
    copied = max(timing.copy_bandwidth(size.copy_bytes, timing.Effort(5, 0.0, 0.0)).values())
    columns = {
        f"{label}, {stream}": profile(work, size, stream, rounds)
        for work, label in (("step", "lookup + SparseAdam"), ("pooled_step", "pool + rowwise Adagrad"))
        for stream in ("uniform", "production")
    }
    lines = ["| phase (ms) | " + " | ".join(columns) + " |", "|---|" + "--:|" * len(columns)]
    for phase in [*PHASES, "everything else", "all"]:
        cells = [f"{each[phase]:.2f}" if phase in each else "" for each in columns.values()]
        lines.append(f"| {phase} | " + " | ".join(cells) + " |")
    limits = [1e3 * each["limit"] / copied for each in columns.values()]
    lines.append("| a copy of the bytes that must move | " + " | ".join(f"{each:.2f}" for each in limits) + " |")
    machine = timing.machine()
    return "\n".join(
        [
            *lines,
            "",
            f"{size.num_rows:,} rows of {size.dim} float32, {size.lookups:,} ids, {threads} threads, medians of "
            f"{rounds} steps; {machine['processor']}, {machine['date']}; a copy reads and writes "
            f"{copied / 1e9:.1f} GB/s.",
        ]
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.phases", description=__doc__.split("\n\n")[0])
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE.md", help="rewrite its table")
    parser.add_argument("--threads", type=int, default=timing.THREADS)
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    table = markdown(TINY, 2, options.threads) if options.tiny else markdown(FULL, 60, options.threads)
    if options.file:
        options.file.write_text(rewrite(options.file.read_text(), table))
    else:
        print(table)


if __name__ == "__main__":
    main()
