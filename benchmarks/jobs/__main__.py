"""Whole jobs beside other tools: ``python -m benchmarks.jobs [--quick] [--only JOB] [--json FILE] [--profile]``

Word vectors, recommenders, a knowledge graph, a click model, and steps of `se.Adam` beside torch's dense ones.  All
tools of a job get the same data and threads, each its best learning rate, and train in turn, piece by piece, in one
process; ratios are medians over the pieces.  Quality is measured beside the time.
"""

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

from .. import timing
from .job import measure

JOBS = {  # module and function that make them
    "words": ("words", "job"),
    "ranking": ("ranking", "job"),
    "ranking-many": ("ranking", "many"),
    "graph": ("graph", "job"),
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.jobs", description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="smaller and shorter")
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--only", choices=JOBS, action="append", metavar="JOB", help=f"of {', '.join(JOBS)}; repeat it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    options = parser.parse_args(arguments)
    if options.json and not options.json.absolute().parent.is_dir():
        parser.error(f"--json {options.json}: its folder does not exist")
    size = "tiny" if options.tiny else "quick" if options.quick else "full"
    result: dict[str, Any] = {"machine": timing.machine(), "size": size, "rows": [], "runs": [], "left_out": []}
    for name in options.only or JOBS:
        module, maker = JOBS[name]
        job = getattr(importlib.import_module(f"{__package__}.{module}"), maker)(size)
        rows, runs = measure(job, lambda line: print(line, file=sys.stderr, flush=True))
        result["rows"] += rows
        result["runs"] += runs
        print(json.dumps(rows, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
