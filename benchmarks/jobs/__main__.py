"""Whole jobs beside other tools: ``python -m benchmarks.jobs [--quick] [--only JOB] [--json FILE] [--plot FILE]``

Word vectors, recommenders, a knowledge graph, click models, and steps of `se.Adam` beside torch's dense ones.  All
tools of a job get the same data and threads, each its best learning rate, and train in turn, piece by piece, in one
process; ratios are medians over the pieces.  Quality is measured beside the time.  Data are made up unless the folder
SPARSEMBED_DATA has files of real ones: see `benchmarks.jobs.data`.
"""

import argparse
import contextlib
import importlib
import importlib.metadata
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .. import timing
from . import dense, job, report, shares

JOBS = {  # module, and function that makes the job
    "words": ("words", "job"),
    "ranking": ("ranking", "job"),
    "ranking-many": ("ranking", "many"),
    "graph": ("graph", "job"),
    "clicks": ("clicks", "job"),
    "clicks-uniform": ("clicks", "uniform"),
}
DENSE = "dense"


def log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def made(names: Iterable[str], size: str, threads: list[int] | None, left_out: set[str]) -> Iterable[job.Job]:
    """Make jobs one after the other, without the tools that are not installed, which `left_out` gets."""
    for name in names:
        module, maker = JOBS[name]
        found = importlib.import_module(f"{__package__}.{module}")
        if missing := [each for each in getattr(found, "NEEDS", ()) if not timing.installed(each)]:
            left_out.update(missing)
            continue
        each = getattr(found, maker)(size)
        left_out.update(module for tool in each.tools for module in job.absent(tool))
        yield each._replace(threads=tuple(threads)) if threads else each


def machine() -> dict[str, Any]:
    """Return the machine, with the versions of the rivals."""
    result = timing.machine()
    for name in ("gensim", "implicit"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            result["versions"][name] = importlib.metadata.version(name)
    return result


def profile(jobs: Iterable[job.Job]) -> list[dict[str, Any]]:
    """Print and return the shares of what our tools do in a piece."""
    found = []
    for each in jobs:
        timing.set_threads(max(each.threads))
        ours = [tool for tool in each.tools if "sparsembed" in tool.engine and not job.absent(tool)]
        rows = [
            {"job": each.name, "tool": tool.name, "shares": shares.shares(tool, tool.rates[0], max(each.threads))}
            for tool in ours
        ]
        print("\n".join(shares.lines(each, rows)))
        found += rows
    return found


def measure(names: Iterable[str], size: str, threads: list[int] | None) -> dict[str, Any]:
    """Measure jobs; what is not installed is left out and named."""
    names, left_out = list(names), set[str]()
    result: dict[str, Any] = {"machine": machine(), "size": size, "rows": [], "runs": [], "dense": []}
    for each in made([name for name in names if name != DENSE], size, threads, left_out):
        rows, runs = job.measure(each, log)
        result["rows"] += rows
        result["runs"] += runs
    if DENSE in names:
        missing = [module for module in dense.NEEDS if not timing.installed(module)]
        left_out.update(missing)
        result["dense"] = [] if missing else dense.measure(size, max(threads or [timing.THREADS]), log)
    return result | {"left_out": sorted(left_out)}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.jobs", description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="smaller and shorter")
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    every = [*JOBS, DENSE]
    parser.add_argument("--only", choices=every, nargs="+", default=every, metavar="JOB", help=f"of {', '.join(every)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw quality over wall time")
    parser.add_argument("--draw", type=Path, metavar="RESULT", help="measure nothing: draw a result of --json")
    parser.add_argument("--threads", type=int, nargs="+", help="numbers of threads, instead of each job's own")
    parser.add_argument("--profile", action="store_true", help="print where the time of a piece goes, and no times")
    options = parser.parse_args(arguments)
    for name in ("json", "plot"):
        if (path := getattr(options, name)) and not path.absolute().parent.is_dir():
            parser.error(f"--{name} {path}: its folder does not exist")
    if options.draw and not options.plot:
        parser.error("--draw needs --plot FILE")
    size = "tiny" if options.tiny else "quick" if options.quick else "full"
    if options.draw:
        report.draw(json.loads(options.draw.read_text()), options.plot)
        return
    if options.profile:
        profile(made([name for name in options.only if name != DENSE], size, options.threads, set()))
        return
    result = measure(options.only, size, options.threads)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    if options.plot:
        report.draw(result, options.plot)
    print(report.markdown(result))


if __name__ == "__main__":
    main()
